// Light, dark, or as the system says.
import { $, icon } from "./dom.js";

const KEPT = "agartha.theme";
const DARK = matchMedia("(prefers-color-scheme: dark)");

export function themeSwitch() {
  const button = $("theme-button");
  const show = () => {
    const kept = localStorage.getItem(KEPT);
    const dark = kept ? kept === "dark" : DARK.matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    const label = dark ? "Use the light theme" : "Use the dark theme";
    button.title = label;
    button.setAttribute("aria-label", label);
    button.replaceChildren(icon(dark ? "sun" : "moon"));
  };
  button.addEventListener("click", () => {
    localStorage.setItem(KEPT, document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    show();
  });
  DARK.addEventListener("change", show);
  show();
}
