from pathlib import Path

from agartha.ledger.energy import EnergyMeter
from agartha.ledger.nvml import Gpu, choose_visible


def zone(powercap: Path, name: str, label: str, microjoules: int) -> Path:
    folder = powercap / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (folder / "max_energy_range_uj").write_text("100000000\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_without_a_counter_there_is_no_number(tmp_path: Path) -> None:
    meter = EnergyMeter(powercap=tmp_path)
    assert meter.joules() is None and meter.source is None


def test_packages_are_added_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    meter = EnergyMeter(powercap=tmp_path)
    first.write_text("7000000")
    second.write_text("500000")
    core.write_text("9000000")
    assert meter.joules() == 2.5 and meter.source == "rapl"


def test_a_counter_that_wrapped_goes_on(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 99_000_000)
    meter = EnergyMeter(powercap=tmp_path)
    counter.write_text("2000000")
    assert meter.joules() == 3.0
    counter.write_text("3000000")
    assert meter.joules() == 4.0


def test_a_counter_that_is_not_a_number_is_no_counter(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0).write_text("")
    assert EnergyMeter(powercap=tmp_path).joules() is None


def test_devices_that_tell_their_energy_are_added(tmp_path: Path) -> None:
    reading = iter([100.0, 130.0])
    gpus = [Gpu("telling", "GPU-a", lambda: next(reading)), Gpu("silent", "GPU-b", None)]
    meter = EnergyMeter(gpus, powercap=tmp_path)
    assert meter.joules() == 30.0 and meter.source == "nvml"


def test_visible_devices_are_chosen_as_cuda_does() -> None:
    gpus = [Gpu("a", "GPU-1f", None), Gpu("b", "GPU-2e", None), Gpu("c", "GPU-3d", None)]

    def chosen(visible: str | None) -> str:
        return "".join(gpu.name for gpu in choose_visible(gpus, visible))

    assert [chosen(text) for text in (None, "", "-1", "2,0", "GPU-2e", "1,9,0")] == ["abc", "", "", "ca", "b", "b"]
