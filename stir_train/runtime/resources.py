"""What a run loads, each on first use: the model, its tokenizer's automaton, engines, graders."""

from __future__ import annotations

from functools import cached_property

from stir_train.config.inputs import TaskConfig
from stir_train.config.run import RunConfig
from stir_train.data.control_points import ControlPointAutomaton, build_automaton
from stir_train.data.grading import Grader
from stir_train.distributed.world import World
from stir_train.errors import ModelError
from stir_train.generation.backend import GenerationBackend
from stir_train.generation.open import Limits, open_backend
from stir_train.models.blocks import resolve_depth
from stir_train.models.describe import ModelDescription, describe_model
from stir_train.models.load import LoadedModel, load_model
from stir_train.runtime.memory import return_freed_memory


class Resources:
    """The heavy things that stages share; nothing is loaded before it is asked for.

    Attributes:
        students: Engine over a distilled student by name, once something needed it.
    """

    def __init__(self, config: RunConfig, world: World) -> None:
        self._config, self._world = config, world
        self._graders: dict[str, Grader] = {}
        self.students: dict[str, GenerationBackend] = {}

    @cached_property
    def loaded(self) -> LoadedModel:
        """The frozen base model.

        Raises:
            ModelError: If what was loaded is not what its files describe.
        """
        loaded = load_model(self._config.model, self._world)
        if loaded.identity != self.described.identity:
            raise ModelError(
                f"{self._config.model.name} was loaded as {loaded.identity}, its files describe "
                f"{self.described.identity}; they changed meanwhile, or this is a bug"
            )
        return loaded

    @cached_property
    def described(self) -> ModelDescription:
        """The base model without its weights, which many a stage can do without."""
        return describe_model(self._config.model)

    @cached_property
    def automaton(self) -> ControlPointAutomaton:
        """Finds control points for this model's tokenizer."""
        return build_automaton(
            self.described.tokenizer,
            self._config.control_points,
            vocab_size=self.described.vocab_size,
        )

    @cached_property
    def engine(self) -> GenerationBackend:
        """The decoding engine over the base model."""
        return self.make_engine(self.loaded)

    def make_engine(self, loaded: LoadedModel) -> GenerationBackend:
        """An engine over the base model or a student, within the run's limits."""
        limits = self._config.generation
        return open_backend(
            limits.backend,
            loaded,
            Limits(limits.max_rows, limits.max_cache_tokens, limits.options),
        )

    @property
    def grader(self) -> Grader:
        """Grades responses of the run's task."""
        return self.grader_of(self._config.task)

    def grader_of(self, task: TaskConfig) -> Grader:
        """Grades responses of a task; closed with the run."""
        key = task.model_dump_json()
        if key not in self._graders:
            self._graders[key] = Grader(task)
        return self._graders[key]

    @property
    def captured_blocks(self) -> tuple[int, ...]:
        """The harvested depths as ascending block indices."""
        return tuple(sorted({self.block_at(depth) for depth in self._config.harvest.depths}))

    def block_at(self, depth: float) -> int:
        """The block at a depth fraction."""
        return resolve_depth(depth, self.described.identity.num_blocks)

    def release_model(self) -> None:
        """Let go of the model and of every engine, students' too; what is asked for later is loaded again.

        A training has a copy of its own, and a machine that holds one may not hold two.
        """
        self.close_engines()
        for name in ("engine", "loaded"):
            vars(self).pop(name, None)
        return_freed_memory()

    def close_engines(self) -> None:
        """Let go of every engine's cache and of other models; the base's weights stay, and its engine goes on."""
        made = [self.engine] if "engine" in vars(self) else []
        for engine in (*made, *self.students.values()):
            engine.close()
        self.students.clear()

    def close(self) -> None:
        """Stop what is held open."""
        self.close_engines()
        for grader in self._graders.values():
            grader.close()
