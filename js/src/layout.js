import { DfstreamError } from "./errors.js";

/** What `dfstream patch --mode audio` writes into the field `format`. */
export const FORMAT = "dfstream-audio";

/** Inputs and outputs of a hop graph, in any order. */
const INPUTS = ["audio", "state", "atten_lim", "pf_beta"];
const OUTPUTS = ["enhanced", "lsnr", "state_out"];

const HINT = "hand over dfstream_audio_hop.onnx and the JSON file that `dfstream patch --mode audio` wrote beside it";

/**
 * Take what this package needs from the JSON file beside a graph.
 *
 * @param {any} json
 */
export function readLayout(json) {
  const whole = (/** @type {string} */ key) => {
    const value = json?.[key];
    if (!Number.isInteger(value) || value < 0) {
      throw new DfstreamError("model", `the JSON file has ${key} = ${value}, no whole number`, { hint: HINT });
    }
    return value;
  };
  if (json?.format !== FORMAT) {
    throw new DfstreamError("model", `the JSON file is none of a graph from audio to audio`, { hint: HINT });
  }
  return {
    sampleRate: whole("sample_rate"),
    hopSize: whole("hop_size"),
    delaySamples: whole("delay_samples"),
    stateSize: whole("state_size"),
  };
}

/**
 * Refuse a graph that is not the one the JSON file describes.
 *
 * @param {any} session
 * @param {ReturnType<typeof readLayout>} layout
 */
export function checkGraph(session, layout) {
  for (const [what, wanted, found] of [
    ["inputs", INPUTS, session.inputNames],
    ["outputs", OUTPUTS, session.outputNames],
  ]) {
    if ([...found].sort().join() !== [...wanted].sort().join()) {
      throw new DfstreamError("model", `the graph has the ${what} ${found.join(", ")}, expected ${wanted.join(", ")}`, {
        hint: HINT,
      });
    }
  }
  // runtimes before 1.22 tell no shapes: then the first hop fails, with the runtime's own words
  for (const { name, shape } of session.inputMetadata ?? []) {
    const wanted = name === "audio" ? layout.hopSize : name === "state" ? layout.stateSize : undefined;
    if (wanted !== undefined && shape && shape[1] !== wanted) {
      throw new DfstreamError("model", `${name} of the graph is [${shape}], the JSON file says ${wanted}`, {
        hint: HINT,
      });
    }
  }
}
