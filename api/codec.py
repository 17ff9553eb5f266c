"""Images as text: data URIs."""

from base64 import b64encode

from sdserve.generation import EncodedImage


def data_uri(image: EncodedImage) -> str:
    """RFC 2397: `data:image/png;base64,...`."""
    return f"data:{image.media_type};base64,{b64encode(image.data).decode()}"
