import { DfstreamError } from "./errors.js";

/** The form of the JSON file that this package reads. */
const FORMAT = 1;

/** Inputs and outputs of a hop graph, in any order. */
const INPUTS = ["audio", "state", "atten_lim", "pf_beta"];
const OUTPUTS = ["enhanced", "lsnr", "state_out"];

const HINT =
  "hand over dfstream_audio_hop.onnx and the JSON file that `dfstream patch --mode audio-graph` wrote beside it";

/**
 * Take what this package needs from the JSON file beside a graph.
 *
 * @param {any} json
 */
export function readLayout(json) {
  if (json?.format !== FORMAT || json.hops_per_call !== 1) {
    throw new DfstreamError("model", "the JSON file is not that of a graph of one hop a call", { hint: HINT });
  }
  const layout = {
    sampleRate: json.sample_rate,
    hopSize: json.hop_size,
    delaySamples: json.delay_samples,
    stateSize: json.state?.size,
  };
  for (const [name, value] of Object.entries(layout)) {
    if (!Number.isInteger(value) || value < 0) {
      throw new DfstreamError("model", `the JSON file gives ${value} as ${name}`, { hint: HINT });
    }
  }
  return layout;
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
