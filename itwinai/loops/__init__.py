"""The lean loops: Lightning's loops, without the work that a run does not need in every step.

The order of a fit is Lightning's. This is the map, with the points where workers synchronize (=>) and where a
checkpoint can be written and resumed from exactly ([place], see `checkpoints.state.StopPoint`)::

    fit                                          loops.fit.LeanFitLoop
      for each epoch:
        on_train_epoch_start
        TrainingPlan(...)                        loops.training: the hooks that have an implementation
        for each batch:                          loops.training.LeanTrainingEpochLoop.advance
          stop_if_agreed                         after a signal: all workers stop before the same batch
          batch = next(loader)                   converted and moved to the device
          on_train_batch_start                   callbacks, module, strategy; -1 from the module skips the rest
          optimizer_step(closure)                loops.optimization.LeanOptimization; the closure runs
            training_step                        forward; DDP's wrapper shares buffers =>
            Strategy.post_training_step
            on_before_zero_grad, optimizer_zero_grad     in the first batch of an accumulation window
            weigh_loss                              data.weights: batches of unequal size count by their samples
            Strategy.pre_backward
            on_before_backward, backward            gradients are averaged while backward runs =>
            on_after_backward                       in the last batch of a window; the others skip the averaging
            Strategy.post_backward
            on_before_optimizer_step
            configure_gradient_clipping             after averaging, so that every strategy clips the same numbers
            the optimizer changes the parameters  at the end of optimizer_step
          (a batch that only accumulates ends after post_backward: its closure runs without optimizer_step, unless the
          strategy accumulates by itself, as DeepSpeed does)
          lr_scheduler_step                      interval "step"; "epoch" in the last batch
          sync of self.log(..., sync_dist=True)  one exchange for all keys of the step => loops.metric_sync
          on_train_batch_end                     callbacks, module                                          [batch]
          metrics to the loggers                 every log_every_n_steps
          end_together                           before a validation at the end of the epoch =>
          validation                             where val_check_interval says so        loops.evaluation [validation]
          plateau schedulers                                                                            [iteration]
        end_together                             all workers end the epoch here, or an error names those that do not =>
        metrics and logged values of the epoch   synchronized over workers =>
        compare_ranks                            weights that differ between workers are an error =>
        on_train_epoch_end                                                             [end of epoch], then [epoch]

A hook runs in the callbacks first, then in the module. In `on_train_epoch_end` checkpoint callbacks come after the
module; that order is in Lightning's fit loop.

A hook without an implementation costs nothing: `hook_plan` finds that out once per epoch, `training` and `evaluation`
run the plan. Lightning's own steps run instead of a plan where training_step takes a `dataloader_iter`, in the first
batch of a run that resumes without an exact position, and, with all of its loops, for a Lightning version that is not
verified (see `ItwinaiTrainer`): a change of `advance` does not reach these. A thread (`store_monitor`) watches the
store of the workers, so that a worker that waits forever is detected (`desync_detection`) without a collective
operation in every step.

To change what a step does, write a hook in a callback or the module, or implement a protocol of `itwinai.interfaces`:
the loops call those as well. Do not change the order: it is Lightning's contract, and
`tests/loops/test_exactness.py::test_hooks` compares it with Lightning hook by hook.
"""
