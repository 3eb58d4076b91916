/**
 * Answers a package's golden conversations in Node: `node build/checks/golden.js PACKAGE [THREADS [CASE]]`.
 *
 * Prints a line for each conversation, and one with times and peak memory. The exit status is 0 where every prompt and
 * every answer has the ids of golden.json.
 */
import * as ort from "onnxruntime-node";
import { checkGolden } from "../host/golden.js";
import { folderFiles, openFolder } from "../node/index.js";

const [folder, threads, only] = process.argv.slice(2);
if (folder === undefined) {
  console.error("usage: golden.js PACKAGE [THREADS [CASE]]");
  process.exit(2);
}
try {
  const begin = performance.now();
  const model = await openFolder(ort, folder, { threads: Number(threads ?? 0) });
  const opened = performance.now();
  const totals = { right: 0, all: 0, promptTokens: 0, newTokens: 0 };
  for await (const report of checkGolden(model, folderFiles(folder), only)) {
    const isRight = report.differences.length === 0;
    const unsure = report.turns.promptOnly ? `, ${report.turns.promptOnly} by the prompt alone` : "";
    console.log(
      `${report.name}: ${isRight ? "identical" : "DIFFERENT"}${unsure} (${report.seconds.toFixed(2)} s)`,
    );
    for (const difference of report.differences) console.log(`  ${difference}`);
    totals.right += Number(isRight);
    totals.all += 1;
    totals.promptTokens += report.promptTokens;
    totals.newTokens += report.newTokens;
  }
  await model.close();
  const memory = process.resourceUsage().maxRSS / 1024;
  console.log(
    `${totals.right} of ${totals.all} identical; opened in ${((opened - begin) / 1000).toFixed(2)} s, ` +
      `${totals.promptTokens} prompt tokens and ${totals.newTokens} new ones in ` +
      `${((performance.now() - opened) / 1000).toFixed(2)} s, peak memory ${memory.toFixed(0)} MB`,
  );
  process.exitCode = totals.right === totals.all && totals.all > 0 ? 0 : 1;
} catch (error) {
  console.error(`error: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
