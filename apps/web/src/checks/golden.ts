/**
 * Answers a package's golden conversations in Node: `node build/checks/golden.js PACKAGE [THREADS [RUNTIME [CASE]]]`,
 * where RUNTIME is `node` (default) or `wasm`, which is onnxruntime-web outside of a browser.
 *
 * Prints a line for each conversation, and one with times and peak memory. The exit status is 0 where every prompt and
 * every answer has the ids of golden.json.
 */
import * as ortNode from "onnxruntime-node";
import * as ortWeb from "onnxruntime-web";
import { bytesRuntime } from "../host/bytes_runtime.js";
import { checkGolden } from "../host/golden.js";
import { Model } from "../host/model.js";
import { folderFiles, openFolder } from "../node/index.js";

const [folder, threads, runtime = "node", only] = process.argv.slice(2);
if (folder === undefined || !["node", "wasm"].includes(runtime)) {
  console.error("usage: golden.js PACKAGE [THREADS [node|wasm [CASE]]]");
  process.exit(2);
}

function open(folder: string): Promise<Model> {
  if (runtime === "node") return openFolder(ortNode, folder, { threads: Number(threads ?? 0) });
  ortWeb.env.wasm.numThreads = Number(threads ?? 1);
  const session = { logSeverityLevel: 3 } as const;
  return Model.open(folderFiles(folder), bytesRuntime(ortWeb, { provider: "wasm", session }));
}

try {
  const begin = performance.now();
  const model = await open(folder);
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
