#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tycho/analyzer/live_finding.h"
#include "tycho/probe_loss.h"
#include "tycho/session_options.h"

namespace at {
class Tensor;
}
namespace torch::nn {
class Module;
}
namespace torch::optim {
class Optimizer;
}
namespace torch::jit {
struct Module;
}

namespace tycho {

class Probe;

/// A verdict of a law on the run so far, or an alarm: see analyzer::LiveFinding.
using Finding = analyzer::LiveFinding;
using Verdict = analyzer::Verdict;
using Severity = analyzer::Severity;

/// Observes one model and its optimizer while they train. See docs in README and docs/session.md.
/// Constructors throw OptionError where options or model cannot be used; what else fails in them is
/// said, and the session observes nothing. Calls from inside a loss or a probe that the session is
/// evaluating are refused and said, but for close(), which then happens at the end of the step.
class Session {
 public:
  Session(torch::nn::Module& model, torch::optim::Optimizer& optimizer, SessionOptions options);
  Session(torch::jit::Module& model, torch::optim::Optimizer& optimizer, SessionOptions options);
  /// Several optimizers that share the model's parameters between them. Their groups count through,
  /// in this order. They outlive the session; OptionError where one is null.
  Session(torch::nn::Module& model, std::vector<torch::optim::Optimizer*> optimizers,
          SessionOptions options);
  /// Several modules as one model, such as actor and critic: the name, without dots, is the
  /// beginning of each path. They outlive the session; OptionError where one is null.
  Session(std::vector<std::pair<std::string, torch::nn::Module*>> modules,
          std::vector<torch::optim::Optimizer*> optimizers, SessionOptions options);
  /// Tensors without a module, leaves that need gradients. Each is a layer of its own, named by its
  /// number in the list: "0", "1", ...
  Session(std::vector<at::Tensor> parameters, torch::optim::Optimizer& optimizer,
          SessionOptions options);
  Session(std::vector<at::Tensor> parameters, std::vector<torch::optim::Optimizer*> optimizers,
          SessionOptions options);
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Adds a probe of the user's own; before the first step. `every` >= 1: observed at multiples of
  /// that many steps whatever the budget; 0: as the preset's probes. Its name and statistics must
  /// be new.
  void add_probe(std::unique_ptr<Probe> probe, int64_t every = 0);
  /// A loss on a fixed probe batch: unlocks statistics of the loss surface, such as sharpness.
  /// Evaluated inside step() with the observer off; parameters, RNG state, buffers, gradients and
  /// training flags are restored bit for bit. One that throws, is no scalar, not differentiable,
  /// not finite or not repeatable is said once and not evaluated any more.
  void set_probe_loss(std::function<at::Tensor()> probe_loss);
  /// The same in chunks, or with the network's output apart from the loss.
  void set_probe_loss(ProbeLoss probe_loss);
  /// The loss on the batch of the step that is ending, evaluated again inside step(): what did the
  /// step do to the loss that it minimised? Without it that is asked of the probe loss.
  void set_step_loss(std::function<at::Tensor()> step_loss);
  /// The loss on batch `index` of fresh ones, drawn as training draws them; the same index always
  /// means the same batch. Asked for with indices 0, 1, 2, ...
  void set_batch_loss(std::function<at::Tensor(int64_t index)> batch_loss);
  /// The factor by which the loss is multiplied before backward (mixed precision); from the next
  /// backward on.
  void set_loss_scale(double scale);

  /// Ends the step: call after optimizer.step(). `loss` is the (unscaled) loss the step minimised,
  /// a scalar; `batch_size` the number of examples of the whole step, all microbatches together.
  void step(const at::Tensor& loss, int64_t batch_size);
  void step(double loss, int64_t batch_size);

  /// The loss on held-out data at the parameters as they are now, a scalar; as often as it is
  /// evaluated, between steps, also under a Pause. It is recorded with the step that comes next
  /// (the statistic validation_loss), and the report says when it was lowest and whether it rises.
  /// A tensor on another device is waited for.
  void validation(const at::Tensor& loss);
  void validation(double loss);

  /// While the guard lives this session observes nothing (evaluation, another network's backward).
  class Pause {
   public:
    explicit Pause(Session* session);
    Pause(Pause&& other) noexcept;
    ~Pause();
    Pause(const Pause&) = delete;
    Pause& operator=(const Pause&) = delete;
    Pause& operator=(Pause&&) = delete;

   private:
    Session* session_;
  };
  [[nodiscard]] Pause pause();

  /// Verdicts while the run goes on (docs/session.md). With the first of these three calls a thread
  /// begins to judge what is recorded from then on, as the report does; without one there is none.
  /// The trainer never waits for it, what it computes is taken from the overhead budget, and what
  /// it finds is written into the trace.
  ///
  /// `listener` is called on that thread, one call at a time, when a verdict is reached or changes
  /// and when an alarm is raised or over; never after close() has returned, but for one that takes
  /// longer than ten seconds. What it throws is said once. It may call findings(), verdict() and
  /// close(), which then happens in the trainer's next step; other calls of the session are ignored
  /// and said. It may destroy the session while no other thread is in a call of it. It must not
  /// wait for the thread that closes the session.
  void on_finding(std::function<void(const Finding&)> listener);
  /// Alarms that are raised, the most serious first, then all verdicts by importance, as of the
  /// last look; the final ones after close(). Empty before the first observed step was judged. From
  /// any thread once one of the three was called.
  std::vector<Finding> findings();
  /// Of a law at the whole run: findings() without the copies. NOT_YET while nothing is known, and
  /// for what is no law, which is said.
  Verdict verdict(const std::string& law);

  /// Where the trace is: the directory of the options, or the neighbour that was taken instead.
  /// Empty where the session is switched off.
  std::string directory() const;

  /// Writes what is pending and seals the trace. Idempotent; the destructor does it too.
  void close();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace tycho
