"""Every error sensorium raises on purpose.

SensoriumError                  code                     HTTP
+-- RequestError                invalid_request          400   the caller's input is wrong; names the part
|   +-- UnsupportedError        unsupported              400   a field this build or model cannot honour
|   +-- ContextLengthError      context_length_exceeded  400
|   +-- MediaError              invalid_media            400   bytes that do not decode, or break a limit
|   |   +-- MediaFetchError     media_fetch_failed       422   a host that answers with something else than the media
|   |   |   +-- MediaBlockedError media_url_blocked        400   an address that policy forbids; nothing was sent
|   |   |   +-- MediaHostError    media_fetch_failed       502   a host that cannot be reached, or fails
|   |   |   +-- MediaTimeoutError media_fetch_failed       504   a host that is too slow
|   |   +-- DecodeTimeoutError  decode_timeout           400   bytes that take too long to decode
|   |   +-- CacheMissError      mm_cache_miss            400   a media uuid without data that is not in the cache
|   +-- TooLargeError           request_too_large        413
+-- AuthenticationError         invalid_api_key          401
+-- NotFoundError               not_found                404
+-- OverloadedError             overloaded               429   retryable; carries retry_after_s
|   +-- BusyError               busy                     429   as many sessions as this engine holds are open
+-- CheckpointError             invalid_checkpoint       500   a model folder that cannot be loaded
+-- ConfigError                 invalid_config           500   a setting out of range, or settings that contradict
+-- EngineError                 engine_error             500   our fault; the request ends, the engine goes on
    +-- EngineDeadError         engine_dead              503   retryable once the engine is back
        +-- ShuttingDownError   shutting_down            503   retryable elsewhere; this server is ending
"""

from __future__ import annotations


class SensoriumError(Exception):
    """Base class. `message` is safe to show a remote user; `param` names the offending field."""

    code = "internal_error"
    status = 500
    retryable = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(SensoriumError, ValueError):
    """Also a ValueError, as callers of Python libraries expect."""

    code, status = "invalid_request", 400


class UnsupportedError(RequestError):
    code = "unsupported"


class ContextLengthError(RequestError):
    code = "context_length_exceeded"


class MediaError(RequestError):
    code = "invalid_media"


class MediaFetchError(MediaError):
    code, status = "media_fetch_failed", 422


class MediaBlockedError(MediaFetchError):
    code, status = "media_url_blocked", 400


class MediaHostError(MediaFetchError):
    status = 502


class MediaTimeoutError(MediaFetchError):
    status = 504


class DecodeTimeoutError(MediaError):
    code = "decode_timeout"


class CacheMissError(MediaError):
    code = "mm_cache_miss"


class TooLargeError(RequestError):
    code, status = "request_too_large", 413


class AuthenticationError(SensoriumError):
    code, status = "invalid_api_key", 401


class NotFoundError(SensoriumError):
    code, status = "not_found", 404


class OverloadedError(SensoriumError):
    code, status, retryable = "overloaded", 429, True

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float = 1.0, reason: str = "other"
    ) -> None:
        """reason: what is full, in one word, for the metrics."""
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s
        self.reason = reason


class BusyError(OverloadedError):
    code = "busy"


class CheckpointError(SensoriumError):
    code = "invalid_checkpoint"


class ConfigError(SensoriumError, ValueError):
    """`param` names the one setting at fault; None where several contradict each other."""

    code = "invalid_config"


class EngineError(SensoriumError):
    code = "engine_error"


class EngineDeadError(EngineError):
    code, status, retryable = "engine_dead", 503, True


class ShuttingDownError(EngineDeadError):
    code = "shutting_down"
