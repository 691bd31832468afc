// Where one writes.
import { $ } from "./dom.js";

export function composerView(chat, connection) {
  const form = $("composer");
  const area = $("composer-text");
  const send = $("send");
  const stop = $("stop");

  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight + 2, innerHeight * 0.4)}px`;
  };
  const update = () => {
    const running = chat.isRunning();
    send.hidden = running;
    stop.hidden = !running;
    send.disabled = area.value.trim() === "" || !connection.ready;
    if (!running && document.activeElement === document.body && stop.wasFocused) area.focus();
    stop.wasFocused = document.activeElement === stop;
  };
  const submit = () => {
    if (send.disabled || chat.isRunning()) return;
    const text = area.value;
    area.value = "";
    fit();
    chat.send(text);
    area.focus();
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  area.addEventListener("input", () => (fit(), update()));
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  stop.addEventListener("click", () => (chat.stop(), area.focus()));
  for (const type of ["conversation", "change", "finished"]) chat.addEventListener(type, update);
  connection.addEventListener("change", update);
  for (const button of document.querySelectorAll("#welcome button")) {
    button.addEventListener("click", () => {
      area.value = button.dataset.prompt;
      fit();
      update();
      area.focus();
    });
  }
  update();
}
