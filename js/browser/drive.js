// Drives the page in a browser and prints what was seen, as JSON: node drive.js PLAN.json
// `tests/test_web_page.py` writes plans, and judges.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { chromium } from "playwright-core";

const plan = JSON.parse(readFileSync(process.argv[2], "utf8"));

const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--autoplay-policy=no-user-gesture-required",
];

const MICROPHONE = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"];

const text = (page, id) => page.locator(`#${id}`).textContent();

async function save(page, button, name) {
  const [download] = await Promise.all([page.waitForEvent("download"), page.click(`#${button}`)]);
  await download.saveAs(join(plan.folder, name));
  return download.suggestedFilename();
}

/** Move a slider as a person does. */
const slide = (page, id, value) => page.locator(`#${id}`).fill(String(value));

const choose = async (page, file) => {
  await page.setInputFiles("#file", file);
  await page.waitForFunction(
    (name) => document.getElementById("name").textContent === name || !document.getElementById("error").hidden,
    file.split("/").at(-1),
  );
};

const isPlaying = (page) => page.locator("#play").evaluate((play) => play.hasAttribute("data-playing"));

const scenarios = {
  /** Files through the page, with settings; what it offers as downloads. */
  async files(page) {
    const names = [];
    for (const { file, limit, filter, result } of plan.files) {
      await choose(page, file);
      await slide(page, "limit", limit);
      await slide(page, "filter", filter);
      names.push(await save(page, "download", result));
    }
    return { names, limit: await text(page, "limit-text"), filter: await text(page, "filter-text") };
  },

  /** The example is heard, and the page says so. */
  async playing(page) {
    await page.click("#example");
    await page.waitForFunction(() => Number(document.getElementById("load").textContent) > 0);
    await slide(page, "limit", 12);
    await page.click('label[for="hear-before"]');
    await sleep(1000);
    const seen = {
      playing: await isPlaying(page),
      time: await text(page, "time"),
      load: await text(page, "load"),
      lsnr: await text(page, "lsnr"),
      delay: await text(page, "delay"),
      heard: await page.locator("figure[data-heard]").getAttribute("id"),
      colours: await page.evaluate(() =>
        ["before", "after"].map((id) => {
          const canvas = document.getElementById(id);
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return data.reduce((sum, value) => sum + value, 0) / data.length;
        }),
      ),
    };
    await page.selectOption("#buffer", "20");
    await page.waitForFunction(() => parseFloat(document.getElementById("delay").textContent) > 220);
    await page.locator("#seek").fill("4");
    await sleep(500);
    seen.sought = await text(page, "time");
    await page.click("#play");
    seen.paused = !(await isPlaying(page));
    return seen;
  },

  /** Everything by keys; a file dropped. */
  async keyboard(page) {
    const seen = { order: [] };
    for (let i = 0; i < 12; i++) {
      await page.keyboard.press("Tab");
      seen.order.push(await page.evaluate(() => document.activeElement.id));
    }
    await page.locator("#limit").focus();
    await page.keyboard.press("ArrowLeft");
    seen.limit = await text(page, "limit-text");
    seen.spoken = await page.locator("#limit").getAttribute("aria-valuetext");
    await page.keyboard.press("b");
    seen.before = await page.isChecked("#hear-before");
    await page.keyboard.press("B");
    seen.after = await page.isChecked("#hear-after");
    await page.keyboard.press("Space");
    await page.waitForFunction(() => document.getElementById("play").hasAttribute("data-playing"));
    await page.keyboard.press("Space");
    await page.waitForFunction(() => !document.getElementById("play").hasAttribute("data-playing"));
    seen.label = await page.locator("#play").getAttribute("aria-label");
    await page.evaluate(async () => {
      const files = new DataTransfer();
      files.items.add(new File([await (await fetch("example.wav")).blob()], "dropped.wav"));
      for (const type of ["dragover", "drop"]) {
        document.body.dispatchEvent(new DragEvent(type, { bubbles: true, dataTransfer: files }));
      }
    });
    await page.waitForFunction(() => document.getElementById("name").textContent === "dropped.wav");
    seen.curtain = await page.locator("#drop").isVisible();
    await page.locator("#theme").focus();
    await page.keyboard.press("Enter");
    seen.theme = await page.evaluate(() => document.documentElement.dataset.theme);
    return seen;
  },

  /** Files that are none; the page goes on. */
  async wrong(page) {
    const errors = [];
    for (const file of plan.files) {
      await page.setInputFiles("#file", file);
      await page.waitForFunction(() => !document.getElementById("error").hidden);
      errors.push(await text(page, "error"));
      await page.click("#theme");
      await page.evaluate(() => (document.getElementById("error").hidden = true));
    }
    const name = await text(page, "name");
    await page.click("#play");
    await page.waitForFunction(() => Number(document.getElementById("load").textContent) > 0);
    return { errors, name, role: await page.locator("#error").getAttribute("role") };
  },

  /** The Worker fails on its own. */
  async failing(page) {
    await page.workers()[0].evaluate(() => {
      Promise.reject(new Error("the runtime is out of memory"));
    });
    await page.waitForFunction(() => !document.getElementById("error").hidden);
    return { error: await text(page, "error") };
  },

  /** A browser that refuses the microphone. */
  async refused(page) {
    await page.click("#microphone");
    await page.waitForFunction(() => !document.getElementById("error").hidden);
    return {
      error: await text(page, "error"),
      pressed: await page.locator("#microphone").getAttribute("aria-pressed"),
    };
  },

  /** The microphone, for a while; the Worker is held up on the way. */
  async microphone(page) {
    await page.click("#microphone");
    await page.check("#listen");
    await sleep(1000 * plan.seconds);
    const steady = await text(page, "underruns");
    await page.workers()[0].evaluate((ms) => {
      for (const start = performance.now(); performance.now() - start < ms;);
    }, plan.held);
    await sleep(1500);
    const held = await text(page, "underruns");
    const slowest = await text(page, "slowest");
    await page.click("#microphone");
    await page.waitForFunction(() => document.getElementById("name").textContent === "recording.wav");
    await save(page, "download", "heard.wav");
    await save(page, "download-input", "recorded.wav");
    return { steady, held, slowest };
  },

  async screenshot(page) {
    await page.click("#example");
    await sleep(1000 * plan.seconds);
    await page.screenshot({ path: join(plan.folder, "page.png") });
    return {};
  },
};

const browser = await chromium.launch({
  executablePath: plan.browser,
  args: [...FLAGS, ...(plan.microphone ? [...MICROPHONE, `--use-file-for-fake-audio-capture=${plan.microphone}`] : [])],
});
try {
  const page = await browser.newPage({
    viewport: { width: plan.width ?? 1280, height: plan.height ?? 900 },
    colorScheme: "dark",
  });
  const [complaints, requests] = [[], []];
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(plan.url);
  await page.waitForSelector("html[data-ready]", { timeout: 60_000 });
  const isolated = await page.evaluate(() => crossOriginIsolated);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  const seen = await scenarios[plan.scenario](page);
  const elsewhere = requests.filter((url) => !url.startsWith(plan.url) && !url.startsWith("blob:"));
  console.log(JSON.stringify({ ...seen, isolated, wide, complaints, elsewhere }));
} finally {
  await browser.close();
}
