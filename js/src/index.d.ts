/** A graph from audio to audio, loaded into a runtime. Any number of streams share one. */
export interface Model {
  /** SHA-256 of the graph; empty on pages without a secure context. */
  readonly id: string;
  /** Hz. */
  readonly sampleRate: number;
  /** Samples of one hop. */
  readonly hopSize: number;
  /** Samples by which the output lags the input. */
  readonly delaySamples: number;
  /** Floats of one stream's state. */
  readonly stateSize: number;
  /** Free the runtime's memory; streams of the model end with it. */
  release(): Promise<void>;
}

export interface LoadOptions {
  /** The module `onnxruntime-web` or `onnxruntime-node`; by default imported by its name. */
  ort?: object;
  /** The JSON file beside the graph, parsed or by its path or address; by default `.json` in place of `.onnx`. */
  layout?: object | string | URL;
  /** Hops of silence run ahead: WebAssembly computes its first ones many times slower. Default 100. */
  warmUpHops?: number;
  /** Passed on to `InferenceSession.create`. */
  sessionOptions?: object;
}

export interface Settings {
  /** Largest attenuation of the noise in dB; null, the default, is no limit, 0 the noisy signal, delayed. */
  attenLimDb?: number | null;
  /** Strength of the post-filter, 0 to 1: 0, the default, is off, 0.02 usual, 0.05 strong. */
  postFilter?: number;
}

export interface EnhanceOptions extends LoadOptions, Settings {
  /** Called with the fraction that is done; what it returns is awaited, so that it can let other work in. */
  onProgress?: (fraction: number) => unknown;
  /** Ends the work early, with the signal's reason. */
  signal?: AbortSignal;
}

/** All that a stream remembers; survives `structuredClone`. */
export interface Snapshot {
  model: string;
  state: Float32Array;
  waiting: Float32Array;
  samplesIn: number;
  samplesOut: number;
  flushed: boolean;
  attenLimDb: number | null;
  postFilter: number;
}

/** One live signal of one channel. */
export interface Stream {
  readonly model: Model;
  readonly sampleRate: number;
  readonly hopSize: number;
  /** `joined.subarray(delaySamples)` lines up with the input and has its length. */
  readonly delaySamples: number;
  /** Local SNR in dB of every hop that the last call took. */
  readonly lsnr: Float32Array;
  /** Samples taken and given since the beginning. */
  readonly samplesIn: number;
  readonly samplesOut: number;
  /** As in `Settings`; hold from the next hop on when set. */
  attenLimDb: number | null;
  postFilter: number;
  /**
   * Take any number of samples, full scale at 1, and give the hops that became ready.
   * The joined output does not depend on how the input was cut. Calls need not be awaited one by one.
   */
  process(samples: Float32Array): Promise<Float32Array>;
  /** End the stream: give what is still inside. */
  flush(): Promise<Float32Array>;
  /** Forget everything but the settings and begin anew. */
  reset(): void;
  /** What `restore` continues from, bit for bit. */
  snapshot(): Snapshot;
  restore(snapshot: Snapshot): void;
}

/** What every failure is that this package foresees. */
export class DfstreamError extends Error {
  constructor(kind: DfstreamError["kind"], message: string, more?: { hint?: string; cause?: unknown });
  readonly kind: "usage" | "model" | "audio" | "runtime";
  /** What to do about it. */
  readonly hint?: string;
}

/** Load `dfstream_audio_hop.onnx`: a path, an address, or its bytes. */
export function loadModel(graph: string | URL | Uint8Array | ArrayBuffer, options?: LoadOptions): Promise<Model>;

/** Begin a stream of a model, or of a graph as `loadModel` takes it. */
export function createStream(
  model: Model | string | URL | Uint8Array | ArrayBuffer,
  options?: LoadOptions & Settings,
): Promise<Stream>;

/** Enhance a whole recording of one channel: as long as the input, and lined up with it. */
export function enhance(
  model: Model | string | URL | Uint8Array | ArrayBuffer,
  samples: Float32Array,
  options?: EnhanceOptions,
): Promise<Float32Array>;
