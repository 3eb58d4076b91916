/**
 * A package's golden conversations, answered here and compared: every host must give the same ids.
 *
 * Knows golden.json. Where an answer is not sure, rounding may change it, and the prompt alone counts.
 */
import type { Chat, SendOptions } from "./chat.js";
import { Field } from "./fields.js";
import { type PackageFiles, readText } from "./files.js";
import { readPpm, readWav } from "./media_files.js";
import type { Model } from "./model.js";

const GOLDEN = "golden.json";
const MAX_GOLDEN = 16 << 20;

export interface CaseReport {
  readonly name: string;
  /** What is not as it should be, in a line each; none where all ids are identical. */
  readonly differences: readonly string[];
  /** Turns whose answers were compared, and those of which the prompt alone was. */
  readonly turns: { readonly sure: number; readonly promptOnly: number };
  readonly promptTokens: number;
  readonly newTokens: number;
  readonly seconds: number;
}

/** Answers every conversation, or the one of this name, and tells how each went. */
export async function* checkGolden(
  model: Model,
  files: PackageFiles,
  only?: string,
  signal?: AbortSignal,
): AsyncGenerator<CaseReport, void> {
  const root = Field.parse(await readText(files, GOLDEN, MAX_GOLDEN), GOLDEN);
  root.get("format").oneOf(["phirt-golden"]);
  root.get("version").integer(1, 1);
  for (const one of root.get("cases").items()) {
    if (only !== undefined && one.get("name").text() !== only) continue;
    const report = await answered(model, files, one, signal);
    if (signal?.aborted) return; // what was stopped differs, and says nothing
    yield report;
  }
}

async function answered(
  model: Model,
  files: PackageFiles,
  known: Field,
  signal?: AbortSignal,
): Promise<CaseReport> {
  const system = known.get("system");
  const chat = model.chat(system.exists ? { system: system.text() } : {});
  try {
    const listed = (name: Field) =>
      model.manifest.files.has(name.text(255)) ? name.text() : name.refuse("one of the package's files");
    return await compared(chat, files, known, listed, signal);
  } finally {
    chat.reset(); // keys and values, which may lie on a GPU
  }
}

async function compared(
  chat: Chat,
  files: PackageFiles,
  known: Field,
  listed: (name: Field) => string,
  signal?: AbortSignal,
): Promise<CaseReport> {
  const begin = performance.now();
  const differences: string[] = [];
  const turns = { sure: 0, promptOnly: 0 };
  let [promptTokens, newTokens] = [0, 0];
  for (const turn of known.get("turns").items()) {
    const options: SendOptions = {
      maxNewTokens: turn.get("max_new_tokens").integer(1, 1 << 20),
      temperature: 0,
      topK: 0,
      topP: 1,
      minP: 0,
      repetitionPenalty: 1,
      images: turn.get("image").exists ? [readPpm(await files.read(listed(turn.get("image"))))] : [],
      audio: turn.get("audio").exists ? [readWav(await files.read(listed(turn.get("audio"))))] : [],
      ...(signal ? { signal } : {}),
    };
    let streamed = "";
    const reply = chat.send(turn.get("text").text(), options);
    for await (const piece of reply) streamed += piece;
    const result = await reply.finish();
    const isSure = turn.get("sure").boolean();
    turns[isSure ? "sure" : "promptOnly"] += 1;
    const compare = (what: string, found: string, wanted: string) => {
      if (found !== wanted) differences.push(`${what} is ${found}, golden.json has ${wanted}`);
    };
    compare("the prompt", result.promptIds.join(" "), idsOf(turn.get("prompt_ids")));
    compare("the adapter", result.adapter, turn.get("adapter").text());
    compare("what was streamed", JSON.stringify(streamed), JSON.stringify(result.text));
    if (isSure) {
      compare("the answer", result.ids.join(" "), idsOf(turn.get("ids")));
      compare("the text", JSON.stringify(result.text), JSON.stringify(turn.get("answer").text()));
    }
    promptTokens += result.promptIds.length - result.cachedTokens;
    newTokens += result.ids.length;
  }
  const seconds = (performance.now() - begin) / 1000;
  return { name: known.get("name").text(), differences, turns, promptTokens, newTokens, seconds };
}

function idsOf(list: Field): string {
  return list
    .items()
    .map((id) => id.integer(0, 1 << 22))
    .join(" ");
}
