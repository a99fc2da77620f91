"""What people may send to the page: pictures, of bounded size, that they have uploaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

if TYPE_CHECKING:
    import gradio

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # what browsers show; Pillow runs programs for EPS
MAX_PIXELS = 64_000_000  # 0.5 GB decoded, turned and resized (measured); phones have 12 to 50
MAX_SIDES_RATIO = 100  # resizing a strip of 1 x 20,000 to 256 px would make 4 GB of it


def open_picture(path: str) -> Image.Image:
    """Decode a picture as its camera was held. Raises ValueError with a message for its sender.

    Size is checked first: opening reads the header only.
    """
    too_large = f"This picture has more than {MAX_PIXELS // 1_000_000} megapixels."
    if Path(path).stat().st_size == 0:
        raise ValueError("This file is empty.")
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(too_large) from None
    except Exception as error:  # Pillow has half a dozen types for damaged headers
        formats = ", ".join(FORMATS)
        raise ValueError(f"This file is not a picture of a known kind ({formats}).") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(too_large)
        if max(image.size) > MAX_SIDES_RATIO * min(image.size):
            raise ValueError(f"This picture is {MAX_SIDES_RATIO} times as long as it is wide.")
        try:
            image.load()
        except Exception as error:  # and as many for damaged data
            raise ValueError("This picture is damaged: it cannot be decoded.") from error
        try:
            return ImageOps.exif_transpose(image)
        except Exception:  # damaged EXIF is common, and the pixels are whole
            return image.copy()


def accept_only(picture: "gradio.Image") -> None:
    """Make the input hand over an uploaded file's path, unopened, and nothing else.

    Gradio 6.31 itself opens the file first and fails on anything but a picture, downloads any link
    it is sent, of any size, and reads any file of this machine whose path comes without its `meta`.
    (Not done by a subclass: for one, Gradio would write a .pyi file beside this one.)
    """
    import gradio

    move_to_cache, cache = picture.async_move_resource_to_block_cache, picture.GRADIO_CACHE

    async def refuse_links(source: str | None) -> str | None:
        if source and source.lower().startswith(("http:", "https:")):
            raise gradio.Error("Send the picture itself, not a link.", print_exception=False)
        return await move_to_cache(source)

    def uploaded_path(payload: "gradio.FileData | None") -> str | None:
        path = Path(payload.path or "") if payload else None
        if path and not path.resolve().is_relative_to(Path(cache).resolve()):
            raise gradio.Error("This file was not uploaded.", print_exception=False)
        return path and str(path)

    picture.async_move_resource_to_block_cache = refuse_links
    picture.preprocess = uploaded_path


def offer(pictures: list[str], picture: "gradio.Image") -> None:
    """Show example pictures (paths) below the input, for users who have none at hand.

    Not with gradio.Examples, which creates the input again when one is chosen, without what
    `accept_only` did to it.
    """
    import gradio

    rows = gradio.Dataset(
        components=[gradio.Image(visible=False)],
        samples=[[path] for path in pictures],
        label="Examples",
        type="index",
    )
    rows.click(
        lambda number: pictures[number],
        rows,
        picture,
        show_progress="hidden",
        api_visibility="private",
    )
