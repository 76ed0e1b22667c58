import { createStream, enhance, loadModel } from "./dfstream/index.js";
import { Live } from "./live.js";
import * as ort from "./ort/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
// a hop is too little work to share, and one thread needs no isolated page
ort.env.wasm.numThreads = 1;

let model;
let live;
const running = new Map();

/** Calls of the page by their names; results of a call go back under its number. */
const calls = {
  async load() {
    model = await loadModel(new URL("./model/dfstream_audio_hop.onnx", import.meta.url), { ort });
    const about = await (await fetch(new URL("./model/about.json", import.meta.url))).json();
    const { sampleRate, hopSize, delaySamples } = model;
    return { ...about, sampleRate, hopSize, delaySamples };
  },

  async enhance({ channels, settings }, number) {
    const abort = new AbortController();
    running.set(number, abort);
    try {
      const enhanced = [];
      for (const samples of channels) {
        const onProgress = async (fraction) => {
          postMessage({ number, progress: (enhanced.length + fraction) / channels.length });
          await turn();
        };
        enhanced.push(await enhance(model, samples, { ...settings, onProgress, signal: abort.signal }));
      }
      return enhanced;
    } finally {
      running.delete(number);
    }
  },

  async start({ port, settings, record }) {
    await live?.stop();
    const stream = await createStream(model, settings);
    live = new Live(stream, port, record, (hops) => postMessage({ hops }));
  },

  settings(settings) {
    live?.change(settings);
  },

  async stop() {
    const ended = live;
    live = undefined;
    return ended?.stop();
  },
};

// what fails in a live stream has no call to answer
addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  postMessage({ failure: event.reason?.message ?? String(event.reason) });
});

/** Let other messages in: promises alone never do. */
function turn() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

onmessage = async ({ data: { number, name, values } }) => {
  if (name === "cancel") {
    running.get(values)?.abort();
    return;
  }
  try {
    postMessage({ number, result: await calls[name](values, number) });
  } catch (error) {
    postMessage({ number, error: { name: error.name, message: error.message, hint: error.hint } });
  }
};
