import { readWav } from "./dfstream/wav.js";

/** Decoded sound takes ten times the room of a compressed file. */
const MOST_BYTES = 200e6;

/**
 * Samples of a file at the model's rate: of a WAV file the very ones it holds, of others what the browser decodes.
 *
 * @param {Blob} file
 * @param {string} name
 * @param {number} sampleRate Hz
 */
export async function readRecording(file, name, sampleRate) {
  if (file.size > MOST_BYTES) throw new Error(`${name} is larger than ${MOST_BYTES / 1e6} MB`);
  const bytes = await file.arrayBuffer();
  const channels = wavOf(bytes, sampleRate) ?? (await decoded(bytes, name, sampleRate));
  if (!channels[0]?.length) throw new Error(`${name} holds no sound`);
  return { name, sampleRate, channels: channels.slice(0, 2) };
}

/** Mean of the channels. */
export function mono({ channels }) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((sample, i) => (sample + channels[1][i]) / 2);
}

function wavOf(bytes, sampleRate) {
  try {
    const wav = readWav(bytes);
    return wav.sampleRate === sampleRate ? wav.channels : undefined;
  } catch {
    return undefined;
  }
}

async function decoded(bytes, name, sampleRate) {
  const context = new OfflineAudioContext(1, 1, sampleRate);
  try {
    const buffer = await context.decodeAudioData(bytes);
    return Array.from({ length: buffer.numberOfChannels }, (_, i) => buffer.getChannelData(i));
  } catch {
    throw new Error(`${name} is no sound that this browser can decode`);
  }
}
