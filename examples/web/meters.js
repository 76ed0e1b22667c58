/** Hops whose slowest and whose local SNR are shown: five seconds. */
const LATELY = 500;

/** dB at the ends of the scale of the local SNR. */
const [LOWEST, HIGHEST] = [-15, 35];

/** Share of a new value in what is shown. */
const SMOOTHING = 0.08;

/** Hops between two changes of a number: quicker ones cannot be read. */
const SHOWN_EVERY = 12;

/** What a live stream says about itself. */
export class Meters {
  #element;
  #times = [];
  #levels = [];
  #load;
  #lsnr;
  #hops = 0;

  /** @param {(id: string) => HTMLElement} element */
  constructor(element) {
    this.#element = element;
  }

  clear() {
    this.#times = [];
    this.#levels = [];
    this.#draw();
    this.#load = this.#lsnr = undefined;
    for (const id of ["load", "slowest", "lsnr"]) this.#element(id).textContent = "–";
    this.#element("lsnr-meter").value = LOWEST;
    this.#element("load-meter").value = 0;
    this.count({ underruns: 0, missing: 0 });
  }

  /** Hops as the Worker reports them. */
  add(hops) {
    for (const { ms, lsnr } of hops) {
      this.#load = smooth(this.#load, ms);
      this.#lsnr = smooth(this.#lsnr, lsnr);
      this.#times.push(ms);
      this.#levels.push(this.#lsnr);
    }
    for (const past of [this.#times, this.#levels]) past.splice(0, past.length - LATELY);
    this.#draw();
    this.#hops += hops.length;
    this.#element("lsnr-meter").value = this.#lsnr;
    this.#element("load-meter").value = this.#load;
    if (this.#hops < SHOWN_EVERY) return;
    this.#hops = 0;
    this.#element("lsnr").textContent = this.#lsnr.toFixed(0).replace("-0", "0");
    this.#element("load").textContent = this.#load.toFixed(2);
    this.#element("slowest").textContent = `${Math.max(...this.#times).toFixed(1)} ms`;
  }

  /** The local SNR of late, newest at the right. */
  #draw() {
    const canvas = this.#element("lsnr-trace");
    const { width, height } = canvas.getBoundingClientRect();
    [canvas.width, canvas.height] = [Math.round(width * devicePixelRatio), Math.round(height * devicePixelRatio)];
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    context.strokeStyle = getComputedStyle(canvas).color;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    this.#levels.forEach((level, i) => {
      const x = width * (1 + (i + 1 - this.#levels.length) / LATELY);
      const y = 2 + (height - 4) * (1 - (level - LOWEST) / (HIGHEST - LOWEST));
      context.lineTo(x, y);
    });
    context.stroke();
  }

  /** Gaps in what was heard, and how long they were together. */
  count({ underruns, missing }, sampleRate = 1) {
    const text = underruns ? `${underruns} (${Math.ceil((1000 * missing) / sampleRate)} ms)` : "0";
    this.#element("underruns").textContent = text;
  }
}

const smooth = (old, value) => (old === undefined ? value : old + SMOOTHING * (value - old));
