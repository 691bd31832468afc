"""Size report: lines by room, and files and functions that ought to be talked about. Fails past the limits."""

import ast
import sys
from pathlib import Path

FILE_LIMIT, FUNCTION_TALK, FUNCTION_LIMIT = 600, 60, 120


def main() -> int:
    root = Path(__file__).parent.parent / "agartha"
    files = {path: path.read_text().splitlines() for path in sorted(root.rglob("*.py"))}
    rooms: dict[str, int] = {}
    for path, lines in files.items():
        room = path.relative_to(root).parts[0]
        rooms[room] = rooms.get(room, 0) + sum(bool(line.strip()) for line in lines)
    for room, count in sorted(rooms.items(), key=lambda item: -item[1]):
        print(f"{count:6} {room}")
    print(f"{sum(rooms.values()):6} all")
    functions = [(n.end_lineno - n.lineno + 1, path, n.name) for path, lines in files.items()
                 for n in ast.walk(ast.parse("\n".join(lines))) if isinstance(n, ast.FunctionDef) and n.end_lineno]  # fmt: skip
    too_long = [f"{path}: {len(lines)} lines" for path, lines in files.items() if len(lines) > FILE_LIMIT]
    for length, path, name in sorted(functions, reverse=True, key=lambda f: f[0])[:8]:
        if length > FUNCTION_TALK:
            print(f"talk about {path.relative_to(root)}: {name} has {length} lines")
        if length > FUNCTION_LIMIT:
            too_long.append(f"{path}: {name} has {length} lines")
    print("\n".join(too_long))
    return bool(too_long)


if __name__ == "__main__":
    sys.exit(main())
