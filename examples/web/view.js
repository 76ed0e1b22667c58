import { writeWav } from "./dfstream/wav.js";

/** What browsers call their refusals, in other words. */
const WORDS = {
  NotAllowedError: "The browser does not allow this page the microphone.",
  NotFoundError: "No microphone was found.",
  NotReadableError: "The microphone cannot be read: another program may hold it.",
  NotSupportedError: "This browser cannot take a microphone at the rate of the model.",
};

/** A failure in words for people. */
export const wordsFor = (error) => WORDS[error.name] ?? [error.message, error.hint].filter(Boolean).join("; ");

/** Seconds as minutes and seconds. */
export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** Colour a slider up to its thumb. */
export function fill(slider) {
  const share = (slider.value - slider.min) / (slider.max - slider.min || 1);
  slider.style.setProperty("--share", `${100 * share}%`);
}

/** Offer a recording as a download. */
export function save(name, recording) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([writeWav(recording, "pcm24")], { type: "audio/wav" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
