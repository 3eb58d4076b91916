/**
 * Drives the page in a real browser: `node build/checks/page.js PACKAGE [OPTIONS as JSON]`.
 *
 * Writes one JSON object: what was seen at each step, times, memory. Steps that need what the model does not take are
 * left out. Knows the page's elements as a person does: by their names.
 */
import { mkdtemp, readdir, readFile, realpath, rm, symlink, unlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { type BrowserContext, chromium, type Locator, type Page } from "playwright-core";
import { servePage } from "../node/serve.js";

interface Options {
  readonly chromium: string;
  readonly provider: "wasm" | "webgpu";
  /** 0 for as many as the page finds good. */
  readonly threads: number;
  /** Beside those that a container needs. */
  readonly flags: readonly string[];
  readonly steps: readonly string[];
  readonly question: string;
  readonly screenshots: string | null;
  readonly timeout: number;
}

const DEFAULTS: Options = {
  chromium: "/usr/bin/chromium",
  provider: "wasm",
  threads: 0,
  flags: [],
  steps: ["golden", "text", "stop", "image", "drop", "clip", "record", "picked", "policy", "again"],
  question: "Tell me about the sea.",
  screenshots: null,
  timeout: 120_000,
};

type Seen = Record<string, unknown>;

class Visit {
  readonly requests: string[] = [];
  readonly problems: string[] = [];

  constructor(
    readonly page: Page,
    private readonly options: Options,
    private readonly golden: string,
  ) {
    page.setDefaultTimeout(options.timeout);
    page.on("request", (request) => this.requests.push(request.url()));
    page.on("pageerror", (error) => this.problems.push(error.message));
    page.on("console", (message) => {
      if (message.type() === "error") this.problems.push(message.text());
    });
  }

  /** Waits until the status says so; fails where it says that something went wrong. */
  async status(wanted: RegExp): Promise<string> {
    const handle = await this.page.waitForFunction(
      ([source]) => {
        const status = document.getElementById("status");
        const text = status?.textContent ?? "";
        return new RegExp(source).test(text) || status?.classList.contains("wrong") ? text : null;
      },
      [wanted.source],
      { timeout: this.options.timeout },
    );
    const text = (await handle.jsonValue()) ?? "";
    if (!wanted.test(text)) throw new Error(`the page says: ${text}`);
    return text;
  }

  async ready(): Promise<Seen> {
    const begin = performance.now();
    const said = await this.status(/is ready/);
    return { said, seconds: seconds(begin) };
  }

  async check(): Promise<Seen> {
    await this.page.getByText("Model", { exact: true }).click();
    await this.page.getByRole("button", { name: "Check this device" }).click();
    const begin = performance.now();
    const said = await this.status(/conversations identical/).catch((error: Error) => error.message);
    await this.page.getByText("Model", { exact: true }).click();
    return { said, cases: await textOf(this.page.locator("article").last()), seconds: seconds(begin) };
  }

  /** Asks, and tells how the answer grew. */
  async ask(question: string): Promise<Seen> {
    await this.page.getByLabel("Question", { exact: true }).fill(question);
    await this.page.evaluate(countPieces);
    const begin = performance.now();
    await this.page.getByRole("button", { name: "Send" }).click();
    const answer = this.page.locator("article.assistant").last();
    let first = 0;
    for (;;) {
      if (!first && (await textOf(answer.locator("span")))) first = seconds(begin);
      if (await answer.locator("small").count()) break;
      if (await this.page.locator("article.wrong").count()) throw new Error(await textOf(answer));
      await this.page.waitForTimeout(20);
    }
    const [text, note] = [await textOf(answer.locator("span")), await textOf(answer.locator("small"))];
    const pieces = await this.page.evaluate(() => Number(document.body.dataset.pieces));
    return { text, note, pieces, first, seconds: seconds(begin) };
  }

  async stop(): Promise<Seen> {
    await this.temperature("100"); // any token as soon as another, so that the answer has no end of its own
    await this.page.getByLabel("Question", { exact: true }).fill("Count to a thousand.");
    await this.page.getByRole("button", { name: "Send" }).click();
    const answer = this.page.locator("article.assistant").last();
    await answer.locator("span:not(:empty)").waitFor();
    await this.page.dispatchEvent("form#open", "submit");
    await this.page.locator("#status.wrong").waitFor(); // a model is not opened in the midst of an answer
    const begin = performance.now();
    await this.page.getByRole("button", { name: "Stop", exact: true }).click();
    const note = await textOf(answer.locator("small"));
    await this.temperature("0");
    return { note, seconds: seconds(begin) };
  }

  private async temperature(value: string): Promise<void> {
    await this.page.getByText("Model", { exact: true }).click();
    await this.page.getByLabel("Temperature").fill(value);
    await this.page.getByText("Model", { exact: true }).click();
  }

  async attach(name: string): Promise<void> {
    await this.page.locator("#file").setInputFiles(join(this.golden, name));
    await this.page.locator("#attached li").waitFor();
  }

  /** Drops a picture that the page itself has painted, as a PNG. */
  async drop(): Promise<void> {
    const transfer = await this.page.evaluateHandle(async () => {
      const canvas = new OffscreenCanvas(320, 200);
      const context = canvas.getContext("2d") as OffscreenCanvasRenderingContext2D;
      [context.fillStyle, context.font] = ["#cc3333", "1px sans-serif"];
      context.fillRect(40, 40, 120, 120);
      const transfer = new DataTransfer();
      transfer.items.add(new File([await canvas.convertToBlob()], "square.png", { type: "image/png" }));
      return transfer;
    });
    await this.page.dispatchEvent("body", "drop", { dataTransfer: transfer });
    await this.page.locator("#attached li").waitFor();
  }

  /** Records what the browser plays as its microphone. */
  async record(): Promise<Seen> {
    await this.page.getByRole("button", { name: "Record" }).click();
    await this.status(/Recording/);
    await this.page.waitForTimeout(1600);
    await this.page.getByRole("button", { name: "Stop recording" }).click();
    await this.page.locator("#attached li").waitFor();
    return { attached: await textOf(this.page.locator("#attached li")) };
  }

  /** Whether the policy lets the page ask another origin. */
  async policy(): Promise<Seen> {
    const refused = await this.page.evaluate(async () => {
      const blocked = new Promise<string>((resolve) => {
        document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
      });
      const failed = await fetch("http://127.0.0.1:9/").then(
        () => "",
        () => "refused",
      );
      return failed && (await blocked);
    });
    return { refused };
  }

  async screenshot(name: string): Promise<void> {
    if (this.options.screenshots)
      await this.page.screenshot({ path: join(this.options.screenshots, `${name}.png`) });
  }
}

async function textOf(element: Locator): Promise<string> {
  return (await element.textContent()) ?? "";
}

/** In the page: counts what is added to its answers from now on. */
function countPieces(): void {
  let pieces = 0;
  new MutationObserver((records) => {
    for (const { target } of records)
      pieces += Number((target as Element).matches("article.assistant > span"));
    document.body.dataset.pieces = String(pieces);
  }).observe(document.getElementById("conversation") as HTMLElement, { childList: true, subtree: true });
}

function seconds(begin: number): number {
  return Math.round(performance.now() - begin) / 1000;
}

/** Peak memory of the browser's processes that a page lives in, by Linux's account, in MB. */
async function peakMemory(profile: string): Promise<number | null> {
  let peak: number | null = null;
  for (const name of await readdir("/proc").catch(() => [])) {
    const read = (file: string) => readFile(`/proc/${name}/${file}`, "utf8").catch(() => "");
    const command = /^\d+$/.test(name) ? await read("cmdline") : "";
    if (!command.includes("--type=renderer") || !command.includes(profile)) continue;
    const kilobytes = Number(/VmHWM:\s+(\d+)/.exec(await read("status"))?.[1] ?? 0);
    peak = Math.max(peak ?? 0, Math.round(kilobytes / 1024));
  }
  return peak;
}

async function visit(visited: Visit, options: Options, model: string): Promise<Seen> {
  const seen: Seen = {};
  const has = (step: string) => options.steps.includes(step);
  seen.ready = await visited.ready();
  if (has("golden")) seen.golden = await visited.check();
  if (has("text")) {
    seen.text = await visited.ask(options.question);
    await visited.screenshot("text");
  }
  if (has("stop")) seen.stop = await visited.stop();
  const manifest = JSON.parse(await readFile(join(model, "manifest.json"), "utf8")) as {
    files: Record<string, unknown>;
  };
  const named = (ending: string) => Object.keys(manifest.files).find((name) => name.endsWith(ending));
  const [picture, clip] = [named(".ppm"), named(".wav")];
  if (has("image") && picture) {
    await visited.attach(picture);
    seen.image = await visited.ask("What is this?");
  }
  if (has("drop") && picture) {
    await visited.drop();
    seen.drop = await visited.ask("What is this?");
    await visited.screenshot("image");
  }
  if (has("clip") && clip) {
    await visited.attach(clip);
    seen.clip = await visited.ask("What do you hear?");
  }
  if (has("record") && clip) {
    seen.recorded = await visited.record();
    seen.record = await visited.ask("What do you hear?");
  }
  if (has("picked")) {
    await visited.page.locator("#folder").setInputFiles(await realpath(model));
    seen.picked = { ...(await visited.ready()), ...(await visited.ask(options.question)) };
  }
  if (has("policy")) seen.policy = await visited.policy();
  return seen;
}

async function main(model: string, options: Options): Promise<Seen> {
  const work = await mkdtemp(join(tmpdir(), "phirt-page-"));
  const [link, profile] = [join(work, "model"), join(work, "profile")];
  await symlink(resolve(model), link);
  const server = await servePage(link, 0);
  const { port } = server.address() as { port: number };
  const origin = `http://127.0.0.1:${port}`;
  const launch = (): Promise<BrowserContext> =>
    chromium.launchPersistentContext(profile, {
      executablePath: options.chromium,
      headless: true,
      viewport: { width: 412, height: 860 },
      args: ["--no-sandbox", "--disable-dev-shm-usage", ...options.flags],
    });
  const open = async (context: BrowserContext): Promise<Visit> => {
    const visited = new Visit(context.pages()[0] ?? (await context.newPage()), options, link);
    await visited.page.goto(`${origin}/?provider=${options.provider}&threads=${options.threads}`);
    return visited;
  };
  let context = await launch();
  try {
    const first = await open(context);
    const seen = await visit(first, options, link);
    seen.memory = await peakMemory(profile);
    seen.others = first.requests.filter(
      (url) => !url.startsWith(origin) && !url.startsWith("blob:") && !url.startsWith("http://127.0.0.1:9/"),
    );
    seen.fetched = first.requests.filter((url) => url.startsWith(`${origin}/model/`)).length;
    seen.problems = first.problems.filter((problem) => !/127\.0\.0\.1:9/.test(problem));
    seen.version = context.browser()?.version();
    if (options.steps.includes("again")) {
      await context.close();
      await unlink(link); // the server has no model any more
      context = await launch();
      const second = await open(context);
      seen.again = { ...(await second.ready()), answer: (await second.ask(options.question)).text };
    }
    return seen;
  } finally {
    await context.close();
    server.close();
    await rm(work, { recursive: true, force: true });
  }
}

const [model, given] = process.argv.slice(2);
if (model === undefined) {
  console.error("usage: page.js PACKAGE [OPTIONS]");
  process.exit(2);
}
console.log(
  JSON.stringify(
    await main(model, { ...DEFAULTS, ...(JSON.parse(given ?? "{}") as Partial<Options>) }),
    null,
    1,
  ),
);
