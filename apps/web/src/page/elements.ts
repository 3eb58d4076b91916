/** Elements of the page, and the conversation that is shown. Knows the document; knows nothing of models. */

/** The element of the page's own that has this id. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element '${id}'; reload it`);
  return element as T;
}

/** One message that grows. */
export interface Message {
  append(text: string): void;
  note(text: string): void;
  fail(text: string): void;
}

export class Transcript {
  /** Addresses of media that are shown; the browser keeps those media until they are revoked. */
  private urls: string[] = [];

  constructor(private readonly element: HTMLElement) {}

  clear(): void {
    this.element.replaceChildren();
    for (const url of this.urls) URL.revokeObjectURL(url);
    this.urls = [];
  }

  add(
    role: "user" | "assistant",
    text: string,
    media: readonly { file: Blob; isImage: boolean }[] = [],
  ): Message {
    const article = document.createElement("article");
    article.className = role;
    for (const { file, isImage } of media) {
      const shown = document.createElement(isImage ? "img" : "audio");
      shown.src = URL.createObjectURL(file);
      this.urls.push(shown.src);
      if (shown instanceof HTMLAudioElement) shown.controls = true;
      else {
        shown.alt = "";
        shown.onerror = () => shown.remove(); // a PPM, which the host reads and no browser shows
      }
      article.append(shown);
    }
    const said = document.createElement("span");
    said.textContent = text;
    article.append(said);
    this.element.append(article);
    article.scrollIntoView({ block: "end" });
    const isAtEnd = () => this.element.scrollHeight - this.element.scrollTop - this.element.clientHeight < 80;
    return {
      append: (more) => {
        const follows = isAtEnd();
        said.append(more);
        if (follows) article.scrollIntoView({ block: "end" });
      },
      note: (line) => {
        const small = document.createElement("small");
        small.textContent = line;
        article.append(small);
        article.scrollIntoView({ block: "end" });
      },
      fail: (line) => {
        article.classList.add("wrong");
        said.append(said.textContent ? `\n${line}` : line);
      },
    };
  }
}
