// Asks a package of phirt in Node, with a picture or a recording: node ask.mjs PACKAGE [FILE.ppm|FILE.wav] QUESTION
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";
import { isWav, PhirtError, readPpm, readWav } from "phirt-web";
import { openFolder } from "phirt-web/node";

const [folder, ...words] = process.argv.slice(2);
const question = words.pop();
if (question === undefined) {
  console.error("usage: ask.mjs PACKAGE [FILE.ppm|FILE.wav] QUESTION");
  process.exit(2);
}

// Ctrl-C ends the answer within one step; what has come of it stays.
const stopping = new AbortController();
process.once("SIGINT", () => stopping.abort());

try {
  const model = await openFolder(ort, folder);
  const files = await Promise.all(words.map(async (name) => new Uint8Array(await readFile(name))));
  const chat = model.chat();
  const reply = chat.send(question, {
    images: files.filter((file) => !isWav(file)).map(readPpm),
    audio: files.filter(isWav).map(readWav),
    maxNewTokens: 200,
    signal: stopping.signal,
  });
  for await (const piece of reply) process.stdout.write(piece);
  const { finishReason, ids, seconds } = await reply.finish();
  console.error(
    `\n(${finishReason}, ${ids.length} tokens, ${(ids.length / seconds.decode).toFixed(0)} a second)`,
  );
  await model.close();
} catch (error) {
  if (!(error instanceof PhirtError)) throw error;
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
}
