import { DfstreamError, textOf } from "./errors.js";
import { checkGraph, readLayout } from "./layout.js";
import { importRuntime, readBytes } from "./source.js";

/** A hop is too little work to share among threads. */
const SESSION_OPTIONS = { intraOpNumThreads: 1, interOpNumThreads: 1, executionMode: "sequential" };

/** A graph in a runtime: `Model` of `index.d.ts`, which says what the members mean. */
export class Model {
  #ort;
  #session;

  /**
   * @param {any} ort
   * @param {any} session
   * @param {ReturnType<typeof readLayout>} layout
   * @param {string} id
   */
  constructor(ort, session, layout, id) {
    this.#ort = ort;
    this.#session = session;
    this.id = id;
    this.sampleRate = layout.sampleRate;
    this.hopSize = layout.hopSize;
    this.delaySamples = layout.delaySamples;
    this.stateSize = layout.stateSize;
  }

  /** @param {Float32Array} samples of one hop, whose changes the tensor shows */
  audioOf(samples) {
    return new this.#ort.Tensor("float32", samples, [1, this.hopSize]);
  }

  /** @param {Float32Array} values */
  stateOf(values) {
    return new this.#ort.Tensor("float32", values, [1, this.stateSize]);
  }

  freshState() {
    return this.stateOf(new Float32Array(this.stateSize));
  }

  /** @param {number} value */
  scalar(value) {
    return new this.#ort.Tensor("float32", Float32Array.of(value), [1]);
  }

  /**
   * Take one hop through the graph.
   *
   * @param {any} audio
   * @param {any} state
   * @param {any} noisyGain 0: no limit, 1: the delayed input
   * @param {any} beta
   */
  async run(audio, state, noisyGain, beta) {
    const result = await this.#session.run({ audio, state, atten_lim: noisyGain, pf_beta: beta });
    return { enhanced: result.enhanced.data, lsnr: result.lsnr.data[0], state: result.state_out };
  }

  /** @param {number} hops */
  async warmUp(hops) {
    const audio = this.audioOf(new Float32Array(this.hopSize));
    const off = this.scalar(0);
    let state = this.freshState();
    for (let hop = 0; hop < hops; hop++) ({ state } = await this.run(audio, state, off, off));
  }

  async release() {
    await this.#session.release();
  }
}

/**
 * @param {string | URL | Uint8Array | ArrayBuffer} graph
 * @param {import("./index.js").LoadOptions} [options]
 */
export async function loadModel(graph, { ort, layout, warmUpHops = 100, sessionOptions } = {}) {
  const runtime = ort ?? (await importRuntime());
  const isAddress = typeof graph === "string" || graph instanceof URL;
  if (!isAddress && layout === undefined) {
    throw new DfstreamError("usage", "the bytes of a graph come without its JSON file", {
      hint: 'hand that over as the option "layout": an object, a path or an address',
    });
  }
  const description = await jsonOf(layout ?? String(graph).replace(/\.onnx(?=$|[?#])/, ".json"));
  const checked = readLayout(description);
  const bytes = isAddress ? await readBytes(graph) : new Uint8Array(graph);
  const session = await createSession(runtime, bytes, { ...SESSION_OPTIONS, ...sessionOptions });
  checkGraph(session, checked);
  const model = new Model(runtime, session, checked, await digest(bytes));
  await model.warmUp(warmUpHops);
  return model;
}

/** @param {any} layout */
async function jsonOf(layout) {
  if (typeof layout !== "string" && !(layout instanceof URL)) return layout;
  const text = new TextDecoder().decode(await readBytes(layout));
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new DfstreamError("model", `${layout}: ${textOf(error)}`, { cause: error });
  }
}

/**
 * @param {any} runtime
 * @param {Uint8Array} bytes
 * @param {object} options
 */
async function createSession(runtime, bytes, options) {
  try {
    return await runtime.InferenceSession.create(bytes, options);
  } catch (error) {
    throw new DfstreamError("model", `the runtime cannot load the graph: ${textOf(error)}`, { cause: error });
  }
}

/**
 * SHA-256 as hexadecimal digits; empty where a browser keeps it from insecure pages.
 *
 * @param {Uint8Array} bytes
 */
async function digest(bytes) {
  if (!globalThis.crypto?.subtle) return "";
  const hash = await crypto.subtle.digest("SHA-256", /** @type {Uint8Array<ArrayBuffer>} */ (bytes));
  return Array.from(new Uint8Array(hash), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
