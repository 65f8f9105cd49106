"""Serve a model over HTTP with LitServe: an image file in, its predictions as JSON out (docs/serving.md).

python demo/serve.py nano-shapes --port 8000
curl --data-binary @demo/shapes_1.jpg http://127.0.0.1:8000/predict
"""

import argparse
import io
import os
import signal
from collections.abc import Sequence
from typing import Annotated, Any

import cv2
import litserve as ls
import numpy as np
from fastapi import Body
from fastapi.responses import JSONResponse
from litserve.loops.simple_loops import BatchedLoop
from PIL import Image

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')


class RefusedError(ValueError):
    """An upload that gets an answer without predictions: ``RefusedError(status, reason)``."""


def decode(content: bytes, *, max_pixels: int) -> np.ndarray:
    """Decode an uploaded file as ``Predictor`` decodes files: RGB, uint8 ``(H, W, 3)``. The header is checked first."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)  # reads the header only
    except Image.DecompressionBombError as error:
        raise RefusedError(413, f'the image has more than {max_pixels:,} pixels, which is the limit') from error
    except Exception as error:  # any error of a decoder is about the upload
        raise RefusedError(400, f'the body ({len(content):,} bytes) is no {", ".join(FORMATS)} file') from error
    if image.width * image.height > max_pixels:
        raise RefusedError(413, f'the image has more than {max_pixels:,} pixels, which is the limit')
    try:
        image.draft('L', (1, 1))  # decodes a JPEG at an eighth of its size, which finds that it is cut off
        image.load()
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except Exception as error:
        raise RefusedError(400, f'the image is damaged or cut off ({type(error).__name__})') from error
    if decoded is None:
        raise RefusedError(400, f'the image is a {image.format} file that cannot be decoded')
    return np.ascontiguousarray(decoded[..., ::-1])


class PredictorAPI(ls.LitAPI):
    """A :class:`mmitpn.Predictor` in a process of its own. A refused image does not fail the others of its batch."""

    def __init__(self, model: str, weights: str | None, *, score: float, batch: int, max_pixels: int) -> None:
        super().__init__(max_batch_size=batch, loop=WaitingLoop())
        self.model, self.weights, self.score, self.max_pixels = model, weights, score, max_pixels

    def setup(self, device: str) -> None:
        """Load the model, in its process."""
        import mmitpn

        self.predictor = mmitpn.Predictor(self.model, self.weights, device=device)

    def decode_request(self, request: Annotated[bytes, Body()]) -> np.ndarray | RefusedError:
        """Decode an image; an error is returned, as an exception would fail the whole batch."""
        try:
            return decode(request, max_pixels=self.max_pixels)
        except RefusedError as error:
            return error

    def batch(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Leave the images as they are: they differ in size."""
        return inputs

    def predict(self, inputs: Sequence[np.ndarray | RefusedError]) -> list[Any]:
        """Predict the images that were decoded, one by one where the batch as a whole fails."""
        images = [one for one in inputs if isinstance(one, np.ndarray)]
        try:
            results = list(self.predictor.predict(images, score=self.score, batch=len(images))) if images else []
        except Exception as error:  # noqa: BLE001 - whichever image it was
            if len(inputs) > 1:
                return [self.predict([one])[0] for one in inputs]
            return [RefusedError(400, f'no prediction for an image of {images[0].shape[:2]} pixels ({error})')]
        results.reverse()
        return [results.pop() if isinstance(one, np.ndarray) else one for one in inputs]

    def encode_response(self, output: Any) -> JSONResponse:
        """Write a ``Result``, or why there is none, as the answer."""
        if isinstance(output, RefusedError):
            status, reason = output.args
            return JSONResponse({'detail': reason}, status)
        found = [{**one, 'name': name} for one, name in zip(output.to_coco(), output.names, strict=True)]
        height, width = output.image.shape[:2]
        return JSONResponse({'width': width, 'height': height, 'predictions': found})


class WaitingLoop(BatchedLoop):
    """Takes a request and those that wait behind it. LitServe's own loop polls for requests all the time."""

    def get_batch_requests(self, lit_api: ls.LitAPI, request_queue: Any, transport: Any) -> tuple[list, list]:  # noqa: ARG002
        """Wait for the first request, take the following ones."""
        requests = [self.get_request(request_queue, timeout=1.0)]
        while requests[-1] is not None and len(requests) < lit_api.max_batch_size:
            requests.append(self.get_request(request_queue, block=False))
        return [(consumer, uid, content) for consumer, uid, _, content in filter(None, requests)], []


class BoundedQueue:
    """ASGI middleware: at most ``length`` uploads are in memory; more are refused. Bodies are bytes, never parsed."""

    def __init__(self, app: Any, *, length: int) -> None:
        self.app, self.length, self.active = app, length, 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer, or pass on."""
        headers = dict(scope.get('headers', ()))
        if scope['type'] != 'http' or scope['method'] != 'POST':
            await self.app(scope, receive, send)
        elif self.active >= self.length:
            refused = JSONResponse({'detail': f'{self.active} images are waiting'}, 503, {'Retry-After': '1'})
            await refused(scope, receive, send)
        elif headers.get(b'content-length', b'0') == b'0' and b'transfer-encoding' not in headers:
            await JSONResponse({'detail': 'the body is empty; send an image file'}, 400)(scope, receive, send)
        else:
            headers[b'content-type'] = b'application/octet-stream'
            scope = {**scope, 'headers': list(headers.items())}
            self.active += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.active -= 1


def main() -> None:
    """Serve until SIGTERM or Ctrl+C; requests that were accepted are answered first."""
    parser = argparse.ArgumentParser(description='Serve a model over HTTP.')
    parser.add_argument('model', help='exported .onnx or .xml file, config or name, as of mmitpn.Predictor')
    parser.add_argument('--weights', help='checkpoint of a config')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--host', default='127.0.0.1', choices=['127.0.0.1', '0.0.0.0', '::'])
    parser.add_argument('--port', type=int, default=8000)
    parser.add_argument('--score', type=float, default=0.3, help='objects with a lower score are left out')
    parser.add_argument('--batch', type=int, default=8, help='images that the model takes at once, at most')
    parser.add_argument('--queue', type=int, default=32, help='images in memory; more are refused with status 503')
    parser.add_argument('--max-bytes', type=int, default=10_000_000, help='of an upload')
    parser.add_argument('--max-pixels', type=int, default=25_000_000, help='of an image')
    args = parser.parse_args()

    os.environ['OPENCV_IO_MAX_IMAGE_PIXELS'] = str(args.max_pixels)  # a second guard, in the process of the model
    api = PredictorAPI(args.model, args.weights, score=args.score, batch=args.batch, max_pixels=args.max_pixels)
    server = ls.LitServer(
        api, accelerator=args.device, devices=1, timeout=False, disable_openapi_url=True,
        max_payload_size=args.max_bytes, middlewares=[(BoundedQueue, {'length': args.queue})],
    )  # fmt: skip
    parent = os.getpid()

    def stop(*_: object) -> None:  # LitServe stops its processes at Ctrl+C only
        if os.getpid() == parent:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    server.run(host=args.host, port=args.port, num_api_servers=1, generate_client_file=False, log_level='warning')


if __name__ == '__main__':
    main()
