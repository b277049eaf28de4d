"""``containerd.services.images.v1``."""

from __future__ import annotations

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from containerd_py.interfaces import Collector, Image, ImageStore
from containerd_py.metadata.database import Database
from containerd_py.services.errors import Context, scope, served
from containerd_py.services.messages import descriptor, descriptor_message, timestamp
from containerd_py.services.rpcs import ImagesServicer
from protos.containerd import images_pb2 as pb


@served(pb.DESCRIPTOR.services_by_name["Images"])
class ImagesService(ImagesServicer):
    """Images over gRPC. What a client was told of survives a power cut."""

    def __init__(self, images: ImageStore, database: Database, collector: Collector) -> None:
        self._images = images
        self._database = database
        self._collector = collector

    async def Get(self, request: pb.GetImageRequest, context: Context) -> pb.GetImageResponse:
        return pb.GetImageResponse(image=_message(self._images.get(scope(context), request.name)))

    async def List(self, request: pb.ListImagesRequest, context: Context) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=map(_message, self._images.list(scope(context), request.filters)))

    async def Create(self, request: pb.CreateImageRequest, context: Context) -> pb.CreateImageResponse:
        made = self._images.create(scope(context), _image(request.image, request.source_date_epoch))
        await self._database.flushed()
        return pb.CreateImageResponse(image=_message(made))

    async def Update(self, request: pb.UpdateImageRequest, context: Context) -> pb.UpdateImageResponse:
        image = _image(request.image, request.source_date_epoch)
        updated = self._images.update(scope(context), image, request.update_mask.paths)
        await self._database.flushed()
        return pb.UpdateImageResponse(image=_message(updated))

    async def Delete(self, request: pb.DeleteImageRequest, context: Context) -> Empty:
        """With ``sync``, what only this image kept is gone when the answer comes."""
        self._images.delete(scope(context), request.name, request.target.digest)
        await self._database.flushed()
        if request.sync:
            await self._collector.collect()
        return Empty()


def _message(image: Image) -> pb.Image:
    return pb.Image(
        name=image.name,
        labels=image.labels,
        target=descriptor_message(image.target),
        created_at=timestamp(image.created_at),
        updated_at=timestamp(image.updated_at),
    )


def _image(message: pb.Image, epoch: Timestamp) -> Image:
    """``epoch``, when set, is the time of the change (SOURCE_DATE_EPOCH)."""
    moment = epoch.seconds * 1_000_000_000 + epoch.nanos
    return Image(message.name, descriptor(message.target), dict(message.labels), moment, moment)
