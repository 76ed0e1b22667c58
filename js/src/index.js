import { DfstreamError } from "./errors.js";
import { Model, loadModel } from "./model.js";
import { Stream } from "./stream.js";

export { DfstreamError, loadModel };

/**
 * @param {any} model
 * @param {import("./index.js").LoadOptions & import("./index.js").Settings} [options]
 */
export async function createStream(model, options = {}) {
  return new Stream(model instanceof Model ? model : await loadModel(model, options), options);
}

/** Hops between two reports: as often as a progress bar can move. */
const REPORT_HOPS = 10;

/**
 * @param {any} model
 * @param {Float32Array} samples
 * @param {import("./index.js").EnhanceOptions} [options]
 */
export async function enhance(model, samples, options = {}) {
  const stream = await createStream(model, options);
  const enhanced = new Float32Array(samples.length + stream.delaySamples);
  const step = stream.hopSize * REPORT_HOPS;
  let written = 0;
  for (let start = 0; start < samples.length; start += step) {
    options.signal?.throwIfAborted();
    const ready = await stream.process(samples.subarray(start, start + step));
    enhanced.set(ready, written);
    written += ready.length;
    await options.onProgress?.(Math.min(1, (start + step) / samples.length));
  }
  enhanced.set(await stream.flush(), written);
  return enhanced.subarray(stream.delaySamples);
}
