import { DfstreamError, textOf } from "./errors.js";

const isNode = typeof process !== "undefined" && Boolean(process.versions?.node);

/**
 * Bytes of a file or of what an address delivers: paths are files in Node and relative addresses in browsers.
 *
 * @param {string | URL} source
 * @returns {Promise<Uint8Array>}
 */
export async function readBytes(source) {
  try {
    return isNode && !/^(https?|data|blob):/.test(String(source)) ? await fromDisk(source) : await fromNetwork(source);
  } catch (error) {
    const hint = "`dfstream patch MODEL --mode audio-graph -o DIR` writes a graph and the JSON file beside it";
    throw new DfstreamError("model", `cannot read ${source}: ${textOf(error)}`, { hint, cause: error });
  }
}

/** @param {string | URL} source */
async function fromDisk(source) {
  const { readFile } = await import("node:fs/promises");
  return readFile(String(source).startsWith("file:") ? new URL(source) : source);
}

/** @param {string | URL} source */
async function fromNetwork(source) {
  const response = await fetch(source);
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`.trim());
  return new Uint8Array(await response.arrayBuffer());
}

/**
 * The runtime of the place: `onnxruntime-node` in Node, `onnxruntime-web` elsewhere.
 *
 * @returns {Promise<any>}
 */
export async function importRuntime() {
  const name = isNode ? "onnxruntime-node" : "onnxruntime-web";
  try {
    const module = await import(name);
    return module.InferenceSession ? module : module.default;
  } catch (error) {
    const hint = `npm install ${name}, or hand a runtime over as the option "ort"`;
    throw new DfstreamError("runtime", `cannot import ${name}: ${textOf(error)}`, { hint, cause: error });
  }
}
