"""``dfstream demo``."""

from __future__ import annotations

from pathlib import Path

import click

from dfstream.cli._progress import loading, progress_bar


@click.command(short_help="Hear it in a browser: a page on this machine.")
@click.argument("model", metavar="[MODEL]", default="bundled")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8420, show_default=True, help="0 takes any free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--no-browser", is_flag=True, help="Do not open a browser.")
@click.option(
    "--runtime", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
    help="Folder with onnxruntime-web's files, instead of the download of the first start.",
)  # fmt: skip
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), metavar="DIR",
    help="Write the page into a new folder, for any web server, and end.",
)  # fmt: skip
def command(
    model: str, port: int, host: str, no_browser: bool, runtime: Path | None, folder: Path | None
) -> None:
    """Serve a page that enhances files and the microphone in the browser.

    MODEL is a name, a folder or an archive. Sound never leaves the browser. The first start downloads ONNX
    Runtime for browsers (14 MB) into the cache, verified; later ones need no network. Browsers give the
    microphone to pages of the machine itself and to those that come over https, so with another --host use
    a server with a certificate in front.
    """
    from dfstream import demo
    from dfstream.webruntime import runtime_folder

    with progress_bar("onnxruntime-web", in_bytes=True) as progress:
        ort = runtime_folder(runtime, progress=progress)
    with loading():
        from dfstream.model import Model

        files = demo.site(Model.load(model), ort)
    if folder is not None:
        demo.write_site(files, folder)
        click.echo(f"wrote {folder}: {sum(file.size for file in files.values()) / 1e6:.1f} MB")
        return
    with demo.serving(files, host, port) as server:
        url = demo.address(server)
        click.echo(f"{url} serves {model}; Ctrl-C ends it")
        if not no_browser:
            click.launch(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt as end:
            if type(end) is not KeyboardInterrupt:  # asked to end by another program
                raise
