/** Hops whose slowest is shown: five seconds. */
const LATELY = 500;

/** Share of a new value in what is shown. */
const SMOOTHING = 0.08;

/** Hops between two changes of a number: quicker ones cannot be read. */
const SHOWN_EVERY = 12;

/** What a live stream says about itself. */
export class Meters {
  #element;
  #times = [];
  #load;
  #lsnr;
  #hops = 0;

  /** @param {(id: string) => HTMLElement} element */
  constructor(element) {
    this.#element = element;
  }

  clear() {
    this.#times = [];
    this.#load = this.#lsnr = undefined;
    for (const id of ["load", "slowest", "lsnr"]) this.#element(id).textContent = "–";
    this.#element("lsnr-meter").value = -15;
    this.#element("load-meter").value = 0;
    this.count({ underruns: 0, missing: 0 });
  }

  /** Hops as the Worker reports them. */
  add(hops) {
    for (const { ms, lsnr } of hops) {
      this.#load = smooth(this.#load, ms);
      this.#lsnr = smooth(this.#lsnr, lsnr);
      this.#times.push(ms);
    }
    this.#times.splice(0, this.#times.length - LATELY);
    this.#hops += hops.length;
    this.#element("lsnr-meter").value = this.#lsnr;
    this.#element("load-meter").value = this.#load;
    if (this.#hops < SHOWN_EVERY) return;
    this.#hops = 0;
    this.#element("lsnr").textContent = this.#lsnr.toFixed(0).replace("-0", "0");
    this.#element("load").textContent = this.#load.toFixed(2);
    this.#element("slowest").textContent = `${Math.max(...this.#times).toFixed(1)} ms`;
  }

  /** Gaps in what was heard, and how long they were together. */
  count({ underruns, missing }, sampleRate = 1) {
    const text = underruns ? `${underruns} (${Math.ceil((1000 * missing) / sampleRate)} ms)` : "0";
    this.#element("underruns").textContent = text;
  }
}

const smooth = (old, value) => (old === undefined ? value : old + SMOOTHING * (value - old));
