/** The page's side of the Worker: calls that are promises, hops that are events. */
export class Enhancer {
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  #calls = new Map();
  #last = 0;

  /** Called with every few hops of a live stream. */
  onHops = () => {};

  /** Called with an error that belongs to no call. */
  onFailure = () => {};

  constructor() {
    this.#worker.onmessage = ({ data }) => this.#answer(data);
    this.#worker.onerror = (event) => {
      const error = new Error(event.message || "the Worker did not start");
      for (const { reject } of this.#calls.values()) reject(error);
      this.#calls.clear();
      this.onFailure(error);
    };
  }

  load() {
    return this.#call("load");
  }

  /** Whole channels, one after the other. */
  enhance(channels, settings, { onProgress = () => {}, signal } = {}) {
    return this.#call("enhance", { channels, settings }, { onProgress, signal });
  }

  /** Begin a live stream, whose hops come and go through a port. */
  start(port, settings, record) {
    return this.#call("start", { port, settings, record }, { transfer: [port] });
  }

  change(settings) {
    return this.#call("settings", settings);
  }

  /** End the live stream; gives what it recorded. */
  stop() {
    return this.#call("stop");
  }

  #call(name, values, { transfer = [], onProgress, signal } = {}) {
    const number = ++this.#last;
    signal?.addEventListener("abort", () => this.#worker.postMessage({ name: "cancel", values: number }));
    return new Promise((resolve, reject) => {
      this.#calls.set(number, { resolve, reject, onProgress });
      this.#worker.postMessage({ number, name, values }, transfer);
    });
  }

  #answer({ hops, failure, number, progress, result, error }) {
    if (hops) {
      this.onHops(hops);
      return;
    }
    if (failure) {
      this.onFailure(new Error(failure));
      return;
    }
    const call = this.#calls.get(number);
    if (progress !== undefined) {
      call?.onProgress(progress);
      return;
    }
    this.#calls.delete(number);
    if (error) call?.reject(Object.assign(new Error(error.message), { name: error.name, hint: error.hint }));
    else call?.resolve(result);
  }
}
