"""Chat messages and media to prompts for MiniCPM-V 2.5, 2.6, 4.0, 4.5 and MiniCPM-o 2.6, 4.5."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.errors import ContextLengthError, RequestError, UnsupportedError
from sensorium.models.chat_template import ChatTemplate, StandIns, arranged, check_role, check_unfinished
from sensorium.models.generic import HasModality, with_own_placeholders
from sensorium.models.minicpm_assembly import Assembly, Marks
from sensorium.models.minicpm_live import MiniCPMLive
from sensorium.models.minicpm_mel import RATE, largest_sound
from sensorium.models.minicpm_pieces import Picture, PieceCutter, Settings, Variant
from sensorium.models.minicpm_slices import SlicePlan
from sensorium.models.minicpm_sound import Sound
from sensorium.models.minicpm_units import SessionPrompts
from sensorium.models.tokenizer import Tokenizer, read_json
from sensorium.params import SpeakingPrompts
from sensorium.types import (
    ChatOptions,
    Embeds,
    Media,
    MediaItem,
    Message,
    Modality,
    Prepared,
    Prompt,
    Span,
)

_CHARS_PER_TOKEN = 8
_WRITTEN = re.compile(r"\(<(image|audio|video)>\./</\1>\)|<(image|audio|video)>\./</\2>")

SPEECH_INSTRUCTIONS = {
    "transcribe": "Please listen to the audio snippet carefully and transcribe the content.\n{audio}",
    "transcribe:en": "Please listen to the audio snippet carefully and transcribe the content.\n{audio}",
    "transcribe:zh": "请仔细听这段音频片段，并将其内容逐字记录。\n{audio}",
}
"""The wordings of MiniCPM-o's model card."""
SPEAKING_PROMPTS = SpeakingPrompts(
    read="Please read the text below.\n{text}",
    read_as="{instructions}\nPlease read the text below.\n{text}",
    reader="Clone the voice in the provided audio prompt.{audio}",
    assistant="Clone the voice in the provided audio prompt.{audio}"
    "As an assistant, you will speak using this voice style.",
    template_kwargs={"use_tts_template": True},
)
"""The same; where the reading is to be in some manner, that is said first."""
FORCE_LISTEN_UNITS = 3
"""At the start of a live session, as in the published demo's service; a folder of ours may say otherwise."""
_PLACEHOLDERS = {name: f"(<{name}>./</{name}>)" for name in ("image", "audio", "video")}
_OWN = {name: re.compile(rf"<{name}>\./</{name}>") for name in _PLACEHOLDERS}

Piece = Picture | Sound


class Processor:
    """Keeps no state between calls, so threads may share it."""

    piece_types = (Picture, Sound, SlicePlan, MediaItem)

    def __init__(self, folder: Path, config: Any = None) -> None:
        """config: the family's own, which knows what towers are loaded; all else is in the folder's JSON files."""
        self.variant = Variant.of(read_json(folder / "config.json"))
        self.tokenizer = Tokenizer(folder, stop_tokens=("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>"))
        self._template = ChatTemplate(folder, self.tokenizer.config)
        self._hears = self.variant.omni and getattr(config, "audio", True) is not None
        self._marks = Marks.of(self.tokenizer, self.variant)
        # The o-4.5 reference removes this token from every prompt it encodes.
        self._listen = self.tokenizer.control_ids.get("<|listen|>") if self.variant.omni else None
        preprocessor = read_json(folder / "preprocessor_config.json")
        self._max_slices = int(preprocessor.get("max_slice_nums", 9))
        self._scale = int(preprocessor.get("scale_resolution", 448))
        self.speech_instructions = self._instructions(preprocessor)
        self.speech_clip_s = float(preprocessor.get("speech_clip_s", 30.0))
        self._holds_live = bool(preprocessor.get("live", True))
        self.force_listen_units = int(preprocessor.get("force_listen_units", FORCE_LISTEN_UNITS))
        given = preprocessor.get("speaking_prompts")
        self.speaking_prompts = SPEAKING_PROMPTS if given is None else SpeakingPrompts(**given)
        self._numbered = bool(preprocessor.get("use_image_id", True))
        config_json = read_json(folder / "config.json")
        self.scales_on_device = False
        self._width = int(config_json.get("hidden_size", 0))
        self._max_chars = _CHARS_PER_TOKEN * int(config_json.get("max_position_embeddings", 32_768))

    def prepare(self, media: Media | Embeds, options: Mapping[str, Any]) -> Prepared:
        """One item as its pictures and sounds."""
        cutter = PieceCutter(
            self.variant,
            Settings.read(options),
            self._max_slices,
            self._numbered,
            self._hears,
            self._scale,
            self._width,
            self.scales_on_device,
        )
        return Prepared(media.modality, tuple(cutter.cut(media)), media.part)

    def live(self, stream: str) -> MiniCPMLive:
        """Raises UnsupportedError for a model that was not made for live sessions."""
        if not self._hears or self.variant.version < (4, 5) or "<|listen|>" not in self.tokenizer.control_ids:
            raise UnsupportedError("this model holds no live sessions; MiniCPM-o 4.5 with its audio tower does")
        if not self._holds_live:
            raise UnsupportedError("this model was not trained for live sessions; MiniCPM-o 4.5 was")
        return MiniCPMLive(SessionPrompts(self, stream))

    def largest(self, modality: Modality, longest: int, options: Mapping[str, Any]) -> Media:
        """A strip of slices, one such frame, or silence."""
        settings = Settings.read(options)
        if modality == "audio":
            samples = largest_sound(longest, self.variant.pool)
            return Media("audio", np.zeros(samples, dtype=np.float32), b"largest", rate=RATE)
        limit = settings.max_slice_nums or (1 if modality == "video" else self._max_slices)
        # More than one slice comes with an overview.
        slices = max(min(limit, longest // self.variant.queries - 1), 1)
        scale = settings.scale_resolution or self._scale
        strip = np.broadcast_to(np.uint8(0), (scale, slices * scale, 3))
        if modality == "image":
            return Media(modality, strip, b"largest")
        return Media(modality, strip[None], b"largest", times_s=np.zeros(1))

    def _instructions(self, preprocessor: Mapping[str, Any]) -> Mapping[str, str]:
        """How the checkpoint was trained to be asked what is said; the folder may say otherwise than the family."""
        if not self._hears:
            return {}
        return preprocessor.get("speech_instructions", SPEECH_INSTRUCTIONS)

    def chat(self, messages: Sequence[Message], options: ChatOptions) -> Prompt:
        """Render the chat template and expand media."""
        settings = Settings.read(options.media_kwargs)
        stand_ins = StandIns(self.tokenizer)
        pieces: list[Piece] = []
        rendered = self._render(messages, options, settings, stand_ins, pieces)
        parts = stand_ins.split(rendered, len(pieces))
        segments = [pieces[part] if isinstance(part, int) else part for part in parts]
        shown = "".join(
            self._shown(part) if not isinstance(part, str) else stand_ins.restore(part) for part in segments
        )
        return self._assemble(segments, settings, stand_ins.literals, shown)

    def raw(
        self, text: str | Sequence[int], media: Sequence[Media | Embeds | Prepared], options: ChatOptions
    ) -> Prompt:
        """A prompt written by the caller: text with `<image>./</image>` and the like, or ids already expanded."""
        settings = Settings.read(options.media_kwargs)
        if not isinstance(text, str):
            return self._from_ids(text, media, options)
        self._check_length(text, "prompt")
        text = with_own_placeholders(text, media, _PLACEHOLDERS, _OWN)
        waiting = {name: [item for item in media if item.modality == name] for name in ("image", "audio", "video")}
        segments: list[str | Piece] = []
        end = 0
        for match in _WRITTEN.finditer(text):
            modality = match[1] or match[2]
            if not waiting[modality]:
                raise _miscounted(text, modality, media)
            segments.append(text[end : match.start()])
            segments += self._cut(waiting[modality].pop(0), options, group=len(segments))
            end = match.end()
        if left := [modality for modality, items in waiting.items() if items]:
            raise _miscounted(text, left[0], media)
        prompt = self._assemble([*segments, text[end:]], settings, {}, text)
        return self._checked(prompt)

    def _from_ids(self, ids: Sequence[int], media: Sequence[Media | Embeds | Prepared], options: ChatOptions) -> Prompt:
        """Every run of placeholder ids takes the rows of the next picture or sound, whichever its wrapper asks for."""
        if any(type(token_id) is not int or not 0 <= token_id < self.tokenizer.vocab_size for token_id in ids):
            raise RequestError(f"token ids must be integers from 0 to {self.tokenizer.vocab_size - 1}", param="prompt")
        settings = Settings.read(options.media_kwargs)
        cut = [piece for index, item in enumerate(media) for piece in self._cut(item, options, group=index)]
        built = self._assemble(cut, settings, {}, None)
        waiting: dict[str, list[Span]] = {"image": [], "audio": []}
        for span in built.spans:
            waiting[built.media[span.media].modality].append(span)
        spans: list[Span] = []
        for start, length in _runs(ids, self._marks.unk):
            opener = ids[start - 1] if start else None
            queue = waiting["audio" if self._marks.audio and opener == self._marks.audio[0] else "image"]
            if not queue or queue[0].length != length:
                raise RequestError(f"the {length} placeholder ids at position {start} fit no media", param="prompt")
            spans.append(replace(queue.pop(0), start=start))
        if any(waiting.values()):
            raise RequestError("the prompt has too few placeholder ids for its media", param="prompt")
        return Prompt(tuple(ids), tuple(spans), built.media)

    def _render(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        settings: Settings,
        stand_ins: StandIns,
        pieces: list[Piece],
    ) -> str:
        if not messages:
            raise RequestError("there are no messages", param="messages")
        takes_parts = self._template.takes_parts(options)
        if options.continue_final_message:
            check_unfinished(messages)
        drafts: list[dict[str, Any]] = []
        for index, message in enumerate(messages):
            check_role(message, f"messages[{index}]")
            extra = stand_ins.tree(dict(message.extra), special_only=message.role == "assistant")
            content = self._content(index, message, options, stand_ins, pieces)
            if options.continue_final_message and index == len(messages) - 1:
                content += stand_ins.end()
            written = [{"type": "text", "text": content}] if takes_parts else content
            drafts.append({**extra, "role": message.role, "content": written})
        unfinished = options.continue_final_message
        variables = {"enable_thinking": False, "use_tts_template": False, **options.template_kwargs}
        if self.variant.omni and any(isinstance(piece, Sound) for piece in pieces):
            variables["use_tts_template"] = True  # as the reference does: spoken input asks for spoken output
        rendered = self._template.render(
            drafts,
            tools=stand_ins.tree(options.tools),
            add_generation_prompt=options.add_generation_prompt and not unfinished,
            variables=stand_ins.tree(variables),
            max_chars=self._max_chars,
            options=options,
        )
        if unfinished:
            rendered, found, _ = rendered.rpartition(stand_ins.end())
            if not found:
                raise RequestError(
                    "the chat template cannot continue the final message", param="continue_final_message"
                )
        elif options.add_generation_prompt and variables["use_tts_template"] is True:
            rendered += self.variant.speech_tail
        return rendered

    def _content(
        self, index: int, message: Message, options: ChatOptions, stand_ins: StandIns, pieces: list[Piece]
    ) -> str:
        """A message as one string. Texts that meet are joined before the search for control tokens in them."""
        settings = Settings.read(options.media_kwargs)
        segments: list[str | Piece] = []
        for part in arranged(message.parts, options.interleave):
            if segments:
                segments.append(settings.joint)
            if isinstance(part, str):
                self._check_length(part, f"messages[{index}]")
                segments.append(part)
            elif isinstance(part, Media | Embeds | Prepared):
                segments += self._cut(part, options, group=index)
            else:
                raise RequestError("media must be fetched and decoded first", param=part.part or f"messages[{index}]")
        from_model = message.role == "assistant"
        written, run = "", ""
        for segment in segments:
            if isinstance(segment, str):
                run += segment
                continue
            written += stand_ins.text(run, special_only=from_model) + stand_ins.media(len(pieces))
            pieces.append(segment)
            run = ""
        return written + stand_ins.text(run, special_only=from_model)

    def _cut(self, media: Media | Embeds | Prepared, options: ChatOptions, group: int) -> list[str | Piece]:
        """Pictures and sounds of one part. Frames with their sound run on, all else is joined as the settings say."""
        prepared = media if isinstance(media, Prepared) else self.prepare(media, options.media_kwargs)
        pieces = [replace(piece, group=group) if isinstance(piece, Sound) else piece for piece in prepared.content]
        has_sound = prepared.modality == "video" and any(isinstance(piece, Sound) for piece in pieces)
        joint = "" if has_sound else Settings.read(options.media_kwargs).joint
        return [segment for piece in pieces for segment in (joint, piece)][1:]

    def _assemble(
        self, segments: Sequence[str | Piece], settings: Settings, literals: Mapping[str, str], text: str | None
    ) -> Prompt:
        segments = self._packed(list(segments), settings)
        per_second = settings.stream_input or self.variant.per_second
        assembly = Assembly(self.tokenizer, self.variant, self._marks, per_second, self.scales_on_device)
        groups: dict[int, list[Sound]] = {}
        for index, segment in enumerate(segments):
            if isinstance(segment, Sound):
                if segment.embeds is not None or not settings.merge_audio_from_same_content:
                    segments[index] = segment = replace(segment, group=-1 - index)
                groups.setdefault(segment.group, []).append(segment)
        for index, segment in enumerate(segments):
            if isinstance(segment, str):
                ids = self.tokenizer.encode_mixed(segment, literals)
                assembly.add_ids([token_id for token_id in ids if token_id != self._listen])
            elif isinstance(segment, Sound):
                assembly.add_sound(segment, groups[segment.group])
            elif not segment.follows:
                assembly.add_pictures([segment, *_followers(segments[index + 1 :])])
        return assembly.finish(text)

    def _packed(self, segments: list[str | Piece], settings: Settings) -> list[str | Piece]:
        """Applies temporal_ids; of what stands between frames packed together only words are left."""
        pictures = {index: segment for index, segment in enumerate(segments) if isinstance(segment, Picture)}
        if settings.temporal_ids is not None:
            if not self.variant.packs_frames:
                raise UnsupportedError("this model does not take temporal_ids", param="media_kwargs.temporal_ids")
            marks = [(time, place > 0) for group in settings.temporal_ids for place, time in enumerate(group)]
            if len(marks) != len(pictures):
                raise RequestError(
                    f"temporal_ids name {len(marks)} pictures, the prompt has {len(pictures)}",
                    param="media_kwargs.temporal_ids",
                )
            for index, (time, follows) in zip(list(pictures), marks, strict=True):
                segments[index] = pictures[index] = replace(pictures[index], time=time, follows=follows)
        for index, picture in pictures.items():
            before = segments[index - 1] if index else None
            if picture.follows and isinstance(before, str):
                segments[index - 1] = before.strip()
        return segments

    def _checked(self, prompt: Prompt) -> Prompt:
        if prompt.ids.count(self._marks.unk) != sum(span.length for span in prompt.spans):
            raise RequestError("the prompt holds placeholder tokens without media", param="prompt")
        return prompt

    def _check_length(self, text: str, param: str) -> None:
        if len(text) > self._max_chars:
            raise ContextLengthError(f"the text has more than {self._max_chars} characters", param=param)

    def _shown(self, piece: Piece) -> str:
        written = "<image>./</image>" if isinstance(piece, Picture) else "<audio>./</audio>"
        return f"({written})" if self.variant.brackets else written


def _miscounted(text: str, modality: str, media: Sequence[HasModality]) -> RequestError:
    found, count = len(_OWN[modality].findall(text)), sum(item.modality == modality for item in media)
    return RequestError(
        f"the prompt has {found} {modality} placeholders; its {modality} items are {count}. Write "
        f"{_PLACEHOLDERS[modality]} for each",
        param="prompt",
    )


def _followers(segments: Sequence[str | Piece]) -> Iterator[Picture]:
    """The frames packed with the picture before `segments`."""
    for segment in segments:
        if isinstance(segment, Picture):
            if not segment.follows:
                return
            yield segment


def _runs(ids: Sequence[int], wanted: int) -> Iterator[tuple[int, int]]:
    """(start, length) of every run of `wanted`."""
    start = 0
    for token_id, run in groupby(ids):
        length = sum(1 for _ in run)
        if token_id == wanted:
            yield start, length
        start += length
