/**
 * The page: a conversation with the model in the worker. What is typed, dropped, photographed or recorded stays in this
 * browser.
 *
 * Knows elements and what they do. Knows nothing of how answers are made.
 */
import type { Picture } from "../host/picture.js";
import type { Result } from "../host/reply.js";
import type { Clip } from "../host/sound.js";
import { byId, type Message, Transcript } from "./elements.js";
import { HostWorker } from "./host_worker.js";
import { kindOf, readClip, readPicture } from "./media_input.js";
import { Recording } from "./microphone.js";
import type { ModelInfo, Provider, Settings, Source } from "./protocol.js";
import { wavOf } from "./wav_file.js";

interface Attached {
  readonly name: string;
  readonly file: Blob;
  readonly picture?: Picture;
  readonly clip?: Clip;
}

const MOST_THREADS = 4;

const host = new HostWorker();
const transcript = new Transcript(byId("conversation"));
const question = byId<HTMLTextAreaElement>("question");
const status = byId("status");
let model: ModelInfo | null = null;
let attached: Attached[] = [];
let recording: Recording | null = null;
let isAtWork = false;

function say(text: string, isWrong = false): void {
  status.textContent = text;
  status.classList.toggle("wrong", isWrong);
}

/** Runs what a person has asked for; what goes wrong is one line. */
function doing(work: () => Promise<void>): () => void {
  return () => {
    work().catch((error: unknown) => say(error instanceof Error ? error.message : String(error), true));
  };
}

function setBusy(isBusy: boolean): void {
  isAtWork = isBusy;
  const isReady = model !== null && !isBusy;
  byId<HTMLButtonElement>("send").disabled = !isReady;
  byId("stop").hidden = !isBusy || model === null;
  for (const id of ["check", "reset"]) byId<HTMLButtonElement>(id).disabled = !isReady;
  byId<HTMLButtonElement>("load").disabled = isBusy;
  byId<HTMLInputElement>("folder").disabled = isBusy;
  question.disabled = model === null;
}

/** Half of what the machine has, since others want to run, too; more than four make no answer faster. */
function defaultThreads(): number {
  return Math.min(Math.max(Math.trunc(navigator.hardwareConcurrency / 2), 1), MOST_THREADS);
}

async function open(source: Source): Promise<void> {
  if (isAtWork) throw new Error("the page is at work; wait for the model, or stop the answer");
  const progress = byId<HTMLProgressElement>("progress");
  model = null;
  setBusy(true);
  progress.hidden = false;
  say("The model is being loaded …");
  try {
    const provider = byId<HTMLSelectElement>("provider").value as Provider;
    const threads = Number(new URLSearchParams(location.search).get("threads")) || defaultThreads();
    model = await host.open({ source, provider, threads }, ({ file, loaded, total, isFetched }) => {
      progress.value = total ? loaded / total : 0;
      const share = `${(loaded / 1e6).toFixed(0)} of ${(total / 1e6).toFixed(0)} MB`;
      say(`${isFetched ? "Fetching" : "Reading"} ${file}: ${share}`);
    });
    // Else a browser may give the space to others when it is short of it. Some ask, which nothing waits for.
    navigator.storage?.persist?.().catch(() => false);
    transcript.clear();
    say(`${model.name} is ready (${model.seconds.toFixed(1)} s). Everything stays in this browser.`);
    question.placeholder = "Ask something";
    byId<HTMLDetailsElement>("options").open = false;
    question.focus();
  } finally {
    progress.hidden = true;
    setBusy(false);
  }
}

function settings(): Settings {
  const temperature = byId<HTMLInputElement>("temperature").valueAsNumber;
  const tokens = byId<HTMLInputElement>("tokens").valueAsNumber;
  return {
    ...(Number.isNaN(temperature) ? {} : { temperature }),
    ...(Number.isNaN(tokens) ? {} : { maxNewTokens: tokens }),
  };
}

async function ask(): Promise<void> {
  if (isAtWork) return;
  setBusy(true);
  try {
    if (recording) await endRecording();
    if (model && (question.value.trim() || attached.length)) await askModel(model, question.value);
  } finally {
    setBusy(false);
  }
}

async function askModel(model: ModelInfo, text: string): Promise<void> {
  const given = attached;
  transcript.add(
    "user",
    text,
    given.map(({ file, picture }) => ({ file, isImage: picture !== undefined })),
  );
  const answer = transcript.add("assistant", "");
  [attached, question.value] = [[], ""];
  showAttached();
  say("Thinking …");
  try {
    const pictures = given.flatMap(({ picture }) => picture ?? []);
    const clips = given.flatMap(({ clip }) => clip ?? []);
    const result = await host.send(text, pictures, clips, settings(), (piece) => answer.append(piece));
    answer.note(summaryOf(result));
    say(`${model.name}: ready`);
  } catch (error) {
    answer.fail(error instanceof Error ? error.message : String(error));
    // To be tried again, or changed; what was typed and attached meanwhile stays.
    [attached, question.value] = [[...given, ...attached], question.value || text];
    showAttached();
    say("That went wrong; see below.", true);
  }
}

function summaryOf(result: Result): string {
  const { prefill, decode, media } = result.seconds;
  const rate = decode ? `, ${((result.ids.length - 1) / decode).toFixed(1)} tokens/s` : "";
  const ends = {
    stop: "",
    length: ", cut at the longest answer",
    context: ", the context is full",
    cancelled: ", stopped",
  };
  return `${result.ids.length} tokens after ${(media + prefill).toFixed(1)} s${rate}${ends[result.finishReason]}`;
}

async function check(): Promise<void> {
  const message: Message = transcript.add("assistant", "");
  setBusy(true);
  say("Answering the package's own conversations …");
  try {
    const { identical, all } = await host.check((report) => {
      const isRight = report.differences.length === 0;
      message.append(
        `${report.name}: ${isRight ? "identical" : "DIFFERENT"} (${report.seconds.toFixed(2)} s)\n`,
      );
      for (const difference of report.differences) message.append(`  ${difference}\n`);
    });
    message.append(`${identical} of ${all} identical`);
    say(`${identical} of ${all} conversations identical`, identical !== all);
  } finally {
    setBusy(false);
  }
}

async function attach(files: Iterable<File>): Promise<void> {
  const { maxPixels = Infinity, maxSeconds = Infinity } = model ?? {};
  try {
    for (const file of files) {
      const kind = kindOf(file);
      if (kind === null)
        throw new Error(`'${file.name}' is neither a picture nor a recording; choose one of these`);
      const media =
        kind === "image"
          ? { picture: await readPicture(file, file.name, maxPixels) }
          : { clip: await readClip(file, file.name, maxSeconds) };
      attached.push({ name: file.name, file, ...media });
    }
  } finally {
    showAttached(); // those before one that went wrong, too
  }
}

function showAttached(): void {
  const list = byId("attached");
  list.replaceChildren(
    ...attached.map((item) => {
      const [entry, remove] = [document.createElement("li"), document.createElement("button")];
      if (item.picture) {
        const image = document.createElement("img");
        [image.src, image.alt] = [URL.createObjectURL(item.file), ""];
        image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
        entry.append(image);
      }
      [remove.type, remove.textContent, remove.ariaLabel] = ["button", "×", `Remove ${item.name}`];
      remove.onclick = () => {
        attached = attached.filter((other) => other !== item);
        showAttached();
      };
      entry.append(item.name, remove);
      return entry;
    }),
  );
}

async function beginRecording(): Promise<void> {
  const button = byId<HTMLButtonElement>("record");
  button.disabled = true; // while the browser asks whether it may
  try {
    recording = await Recording.begin(model?.maxSeconds ?? 30, doing(endRecording));
  } finally {
    button.disabled = false;
  }
  button.ariaPressed = "true";
  button.textContent = "Stop recording";
  say("Recording …");
}

async function endRecording(): Promise<void> {
  const [ended, button] = [recording, byId("record")];
  recording = null;
  button.ariaPressed = "false";
  button.textContent = "Record";
  if (!ended) return;
  const clip = await ended.end();
  const seconds = clip.channels[0].length / clip.rate;
  attached.push({ name: `recording, ${seconds.toFixed(1)} s`, file: wavOf(clip), clip });
  showAttached();
  say("Recorded.");
}

function listenToFiles(id: string): void {
  const input = byId<HTMLInputElement>(id);
  input.onchange = doing(async () => {
    const files = [...(input.files ?? [])];
    input.value = "";
    await attach(files);
  });
}

function start(): void {
  const address = byId<HTMLInputElement>("address");
  const asked = new URLSearchParams(location.search);
  address.value = asked.get("model") ?? address.value;
  if (asked.get("provider") === "webgpu") byId<HTMLSelectElement>("provider").value = "webgpu";
  const openAddress = doing(() => open({ url: new URL(address.value, document.baseURI).href }));
  byId<HTMLFormElement>("open").onsubmit = (event) => {
    event.preventDefault();
    openAddress();
  };
  const folder = byId<HTMLInputElement>("folder");
  folder.onchange = doing(() => open({ picked: [...(folder.files ?? [])] }));
  byId<HTMLFormElement>("ask").onsubmit = (event) => {
    event.preventDefault();
    doing(ask)();
  };
  question.onkeydown = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!byId<HTMLButtonElement>("send").disabled) doing(ask)();
  };
  byId("stop").onclick = () => host.stop();
  byId("check").onclick = doing(check);
  byId("reset").onclick = () => {
    host.reset();
    transcript.clear();
  };
  byId("record").onclick = doing(() => (recording ? endRecording() : beginRecording()));
  for (const id of ["file", "camera"]) listenToFiles(id);
  document.body.ondragover = (event) => {
    event.preventDefault();
    byId("ask").classList.add("over");
  };
  document.body.ondragleave = () => byId("ask").classList.remove("over");
  document.body.ondrop = (event) => {
    event.preventDefault();
    byId("ask").classList.remove("over");
    doing(() => attach([...(event.dataTransfer?.files ?? [])]))();
  };
  question.onpaste = (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) doing(() => attach(files))();
  };
  openAddress();
}

start();
