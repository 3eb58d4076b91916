"""A tkinter window that asks about a picture: a thread fills a queue, the window looks into it now and then.

python apps/examples/ask_tk.py apps/examples/shoes.jpg "What is this?"
"""

import queue
import sys
import threading
import tkinter
from tkinter.scrolledtext import ScrolledText

import phirt


def read(picture: str, question: str, pieces: queue.SimpleQueue[str], stop: threading.Event) -> None:
    """Runs in the thread; tkinter is not touched here."""
    try:
        with phirt.load() as model:
            for piece in model.chat().send(question, images=[picture], cancel=stop):
                pieces.put(piece)
    except phirt.PhirtError as error:
        pieces.put(f"\n{error}")


def main(picture: str, question: str) -> None:
    """Shows the answer until the window is closed."""
    root, pieces, stop = tkinter.Tk(), queue.SimpleQueue[str](), threading.Event()
    text = ScrolledText(root, wrap="word")
    text.pack(fill="both", expand=True)

    def show() -> None:
        while not pieces.empty():
            text.insert("end", pieces.get())
        root.after(30, show)

    reader = threading.Thread(target=read, args=(picture, question, pieces, stop))
    reader.start()
    show()
    root.mainloop()
    stop.set()  # the answer ends within a step
    reader.join()


if __name__ == "__main__":
    main(*sys.argv[1:3])
