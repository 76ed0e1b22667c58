import { DfstreamError } from "./errors.js";

const PCM = 1;
const FLOAT = 3;
const EXTENSIBLE = 0xfffe;

/** @type {Record<string, [bytes: number, read: (view: DataView, at: number) => number]>} */
const READERS = {
  [`${PCM}/8`]: [1, (view, at) => (view.getUint8(at) - 128) / 2 ** 7],
  [`${PCM}/16`]: [2, (view, at) => view.getInt16(at, true) / 2 ** 15],
  [`${PCM}/24`]: [3, (view, at) => ((view.getInt8(at + 2) << 16) | view.getUint16(at, true)) / 2 ** 23],
  [`${PCM}/32`]: [4, (view, at) => view.getInt32(at, true) / 2 ** 31],
  [`${FLOAT}/32`]: [4, (view, at) => view.getFloat32(at, true)],
  [`${FLOAT}/64`]: [8, (view, at) => view.getFloat64(at, true)],
};

/** @type {Record<string, [code: number, bytes: number, write: (view: DataView, at: number, x: number) => void]>} */
const WRITERS = {
  pcm16: [PCM, 2, (view, at, x) => view.setInt16(at, toInteger(x, 15), true)],
  pcm24: [
    PCM,
    3,
    (view, at, x) => {
      const value = toInteger(x, 23);
      view.setUint16(at, value & 0xffff, true);
      view.setInt8(at + 2, value >> 16);
    },
  ],
  float32: [FLOAT, 4, (view, at, x) => view.setFloat32(at, x, true)],
};

/**
 * @param {number} x
 * @param {number} bits
 */
const toInteger = (x, bits) => Math.max(-(2 ** bits), Math.min(2 ** bits - 1, Math.round(x * 2 ** bits)));

/** @param {string} message */
const refused = (message) => new DfstreamError("audio", `not a WAV file this package reads: ${message}`);

/** @param {Uint8Array | ArrayBuffer} bytes */
export function readWav(bytes) {
  const view = bytes instanceof ArrayBuffer ? new DataView(bytes) : viewOf(bytes);
  const chunks = chunksOf(view);
  const form = chunks.get("fmt ");
  const data = chunks.get("data");
  if (!form || form.size < 16 || !data) throw refused("it has no format or no data");
  const count = view.getUint16(form.at + 2, true);
  const sampleRate = view.getUint32(form.at + 4, true);
  const bits = view.getUint16(form.at + 14, true);
  let code = view.getUint16(form.at, true);
  if (code === EXTENSIBLE && form.size >= 26) code = view.getUint16(form.at + 24, true);
  const reader = READERS[`${code}/${bits}`];
  if (!reader || !count || !sampleRate) throw refused(`format ${code}, ${bits} bits, ${count} channels`);
  const [width, read] = reader;
  const length = Math.floor(data.size / (width * count));
  const channels = Array.from({ length: count }, () => new Float32Array(length));
  for (let sample = 0, at = data.at; sample < length; sample++) {
    for (const channel of channels) {
      channel[sample] = read(view, at);
      at += width;
    }
  }
  return { sampleRate, channels };
}

/**
 * @param {import("./wav.js").Recording} recording
 * @param {import("./wav.js").WavFormat} [format]
 */
export function writeWav({ sampleRate, channels }, format = "pcm16") {
  const [code, width, write] = WRITERS[format];
  const count = channels.length;
  const size = channels[0].length * count * width;
  const bytes = new Uint8Array(44 + size + (size % 2));
  const view = viewOf(bytes);
  const put = (/** @type {number} */ at, /** @type {string} */ text) => bytes.set(new TextEncoder().encode(text), at);
  put(0, "RIFF");
  view.setUint32(4, bytes.length - 8, true);
  put(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, code, true);
  view.setUint16(22, count, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, sampleRate * count * width, true);
  view.setUint16(32, count * width, true);
  view.setUint16(34, 8 * width, true);
  put(36, "data");
  view.setUint32(40, size, true);
  for (let sample = 0, at = 44; sample < channels[0].length; sample++) {
    for (const channel of channels) {
      write(view, at, channel[sample]);
      at += width;
    }
  }
  return bytes;
}

/** @param {Uint8Array} bytes */
const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** @param {DataView} view */
function chunksOf(view) {
  const tag = (/** @type {number} */ at) =>
    String.fromCharCode(...[0, 1, 2, 3].map((i) => (at + i < view.byteLength ? view.getUint8(at + i) : 0)));
  if (tag(0) !== "RIFF" || tag(8) !== "WAVE") throw refused("it does not begin as one");
  /** @type {Map<string, { at: number, size: number }>} */
  const chunks = new Map();
  for (let at = 12; at + 8 <= view.byteLength;) {
    // writers to a pipe do not know the size and give the largest one
    const size = Math.min(view.getUint32(at + 4, true), view.byteLength - at - 8);
    if (!chunks.has(tag(at))) chunks.set(tag(at), { at: at + 8, size });
    at += 8 + size + (size % 2);
  }
  return chunks;
}
