const KEY = "theme";

/** A button that turns the page from dark to light and back; the choice outlives the visit where it may. */
export function prepareTheme(button) {
  const root = document.documentElement;
  try {
    const kept = localStorage.getItem(KEY);
    if (kept) root.dataset.theme = kept;
  } catch {
    // a browser that keeps nothing shows the system's
  }
  button.addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem(KEY, root.dataset.theme);
    } catch {
      // as above
    }
  });
}
