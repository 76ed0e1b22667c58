export interface Recording {
  /** Hz. */
  sampleRate: number;
  /** One array of samples for each channel, full scale at 1. */
  channels: Float32Array[];
}

export type WavFormat = "pcm16" | "pcm24" | "float32";

/** Read a WAV file: PCM of 8 to 32 bits or floats of 32 or 64. Throws `DfstreamError` for anything else. */
export function readWav(bytes: Uint8Array | ArrayBuffer): Recording;

/** Write a WAV file. PCM clips at full scale; floats do not. Default `pcm16`. */
export function writeWav(recording: Recording, format?: WavFormat): Uint8Array<ArrayBuffer>;
