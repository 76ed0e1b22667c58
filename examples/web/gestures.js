/** Where the focus is on one of these, the space bar is theirs. */
const WANT_SPACE = "input:not([type=range]):not([type=radio]), select, textarea, button, label";

/** Keys of the whole page: space plays and pauses, B switches between before and after. */
export function listenForKeys({ play, switchOver }) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.code === "Space" && !event.target.closest?.(WANT_SPACE)) {
      event.preventDefault();
      play();
    } else if (event.key.toLowerCase() === "b") {
      switchOver();
    }
  });
}

/** Files that are dropped anywhere; the curtain says that they may be. */
export function listenForDrops(curtain, take) {
  addEventListener("dragover", (event) => {
    event.preventDefault();
    curtain.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) curtain.hidden = true;
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    curtain.hidden = true;
    const [file] = event.dataTransfer.files;
    if (file) take(file);
  });
}
