/**
 * Serves the page on this machine alone: `node build/node/serve.js PACKAGE [PORT]`.
 *
 * The page, the compiled modules and onnxruntime-web's files come from this folder, the package from its own. Every
 * answer forbids any other origin, and lets the page use threads.
 */
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer, type Server, type ServerResponse } from "node:http";
import { extname, join, normalize, resolve, sep } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const PORT = 8080;
const TYPES: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".css": "text/css",
  ".svg": "image/svg+xml",
  ".json": "application/json",
  ".wasm": "application/wasm",
};
const POLICY =
  "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; " +
  "img-src 'self' blob:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; " +
  "frame-ancestors 'none'";
const HEADERS = {
  "Content-Security-Policy": POLICY,
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  "Cache-Control": "no-cache",
};
// A name of another's that leads here makes that other's page one of this origin; the port is nobody's secret.
const OWN_HOST = /^(127\.0\.0\.1|localhost|\[::1\])(:\d+)?$/i;

/** A server of the page and a package, on the loopback alone. */
export function servePage(folder: string, port: number): Promise<Server> {
  const places: readonly [string, string][] = [
    ["/model/", resolve(folder)],
    ["/ort/", join(ROOT, "node_modules", "onnxruntime-web", "dist")],
    ["/build/host/", join(ROOT, "build", "host")],
    ["/build/page/", join(ROOT, "build", "page")],
  ];
  const server = createServer((request, response) => {
    const path = pathOf(request.url ?? "/");
    const page = {
      "/": "index.html",
      "/index.html": "index.html",
      "/page.css": "page.css",
      "/icon.svg": "icon.svg",
    }[path];
    const place = places.find(([start]) => path.startsWith(start));
    const [base, name] = page ? [ROOT, page] : place ? [place[1], path.slice(place[0].length)] : [ROOT, ""];
    const file = normalize(join(base, name));
    const isInside = name !== "" && file.startsWith(normalize(base).replace(/[\\/]?$/, sep));
    if (!OWN_HOST.test(request.headers.host ?? "")) {
      response.writeHead(403, HEADERS).end("this server is for this machine: ask for localhost\n");
      return;
    }
    // What has begun cannot become an error: whoever asked sees that the file is cut off.
    send(response, isInside ? file : null, request.method ?? "GET").catch(() => response.destroy());
  });
  return new Promise((listening, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", () => listening(server));
  });
}

/** The path that is asked for; none of this server's where it is no text. */
function pathOf(url: string): string {
  try {
    return decodeURIComponent(url.split("?")[0] ?? "/");
  } catch {
    return ""; // a percent sign before what is no number
  }
}

async function send(response: ServerResponse, file: string | null, method: string): Promise<void> {
  const found = file === null ? null : await stat(file).catch(() => null); // whatever the reason, it is not there
  if (file === null || !found?.isFile() || (method !== "GET" && method !== "HEAD")) {
    response.writeHead(404, HEADERS).end("not here\n");
    return;
  }
  const type = TYPES[extname(file)] ?? "application/octet-stream";
  response.writeHead(200, { ...HEADERS, "Content-Type": type, "Content-Length": found.size });
  if (method === "HEAD") response.end();
  else await pipeline(createReadStream(file), response);
}

async function main(folder: string | undefined, port: number): Promise<void> {
  if (folder === undefined || !(port >= 0 && port < 65536)) {
    console.error("usage: serve.js PACKAGE [PORT]");
    process.exitCode = 2;
    return;
  }
  const server = await servePage(folder, port);
  const address = server.address();
  console.log(`http://127.0.0.1:${typeof address === "object" ? address?.port : port}`);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(process.argv[2], Number(process.argv[3] ?? PORT));
}
