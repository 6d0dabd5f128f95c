"""Beam's DaskRunner, with three faults of Beam 2.77 corrected.

1. Each reader of a step with several outputs gets all of them. Here it gets those of its tag.
2. What a step has yielded is kept from one part of its input to the next, and yielded again.
3. Keys are grouped by their hash. That of None, by which Beam combines, differs between processes
   before Python 3.12. Here keys are grouped by their representation.
"""

from unittest import mock

from apache_beam import pvalue
from apache_beam.runners import common
from apache_beam.runners.dask import dask_runner, transform_evaluator
from apache_beam.transforms import core, sideinputs


class CorrectedDaskRunner(dask_runner.DaskRunner):
    """Builds the same bags as its base class, but for what is corrected."""

    def run_pipeline(self, pipeline, options):
        """As the base does, with what it calls for each part of a step's input exchanged."""
        with mock.patch.object(transform_evaluator, "apply_dofn_to_bundle", _apply):
            return super().run_pipeline(pipeline, options)

    @staticmethod
    def to_dask_bag_visitor(bag_kwargs=None):
        """Returns a visitor of a pipeline's steps that keeps a bag for each, as the base does."""
        visitor = dask_runner.DaskRunner.to_dask_bag_visitor(bag_kwargs)
        bags = visitor.bags

        def bag_of(value):
            if isinstance(value, pvalue.PBegin):
                return None
            bag = bags[value.producer]
            if type(value.producer.transform) is not core.ParDo:  # A subclass does nothing here.
                return bag
            tag = value.tag  # A task can take this to another process, but not the PCollection.
            return bag.filter(lambda found: found[0] == tag).map(lambda found: found[1])

        def visit_transform(node):
            operation_class = OPERATIONS.get(type(node.transform), transform_evaluator.NoOp)
            operation = operation_class(node, bag_kwargs=bag_kwargs or {})
            inputs = [bag_of(value) for value in node.inputs]
            if not isinstance(operation, transform_evaluator.Flatten):
                (inputs,) = inputs
            sides = [
                sideinputs.SideInputMap(
                    type(side),
                    side._view_options(),
                    transform_evaluator.DaskBagWindowedIterator(
                        bag_of(side.pvalue), side._window_mapping_fn
                    ),
                )
                for side in node.side_inputs
            ]
            bags[node] = operation.apply(inputs, sides or None)

        visitor.visit_transform = visit_transform
        return visitor


def _apply(items, invoker_args, invoker_kwargs, receivers):
    """Returns what a step yields for a part of its input: pairs of a tag, or None, and a value."""
    receivers.values.clear()
    invoker = common.DoFnInvoker.create_invoker(*invoker_args, **invoker_kwargs)
    invoker.invoke_setup()
    invoker.invoke_start_bundle()
    for item in items:
        invoker.invoke_process(item)
    invoker.invoke_finish_bundle()
    invoker.invoke_teardown()
    return [
        (found.tag, found.value.value)
        if isinstance(found, pvalue.TaggedOutput)
        else (None, found.value)
        for found in receivers.values
    ]


class _GroupByKey(transform_evaluator.DaskBagOp):
    def apply(self, input_bag, side_inputs=None):
        def group(members):
            return members[0][0], [transform_evaluator.defenestrate(value) for _, value in members]

        grouped = input_bag.groupby(lambda pair: repr(pair[0]))
        return grouped.map(lambda of_key: group(of_key[1]))


OPERATIONS = {
    operation: _GroupByKey if made is transform_evaluator.GroupByKey else made
    for operation, made in transform_evaluator.TRANSLATIONS.items()
}
