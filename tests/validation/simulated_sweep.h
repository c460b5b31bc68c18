#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comparisons/comparison_law.h"
#include "simulated_run.h"
#include "src/compare/run_digest.h"

namespace tycho::analyzer {

/// A run in memory that ends as a digest, as if it had been read from its trace.
class SweepRun {
 public:
  explicit SweepRun(const std::string& name)
      : engine_(std::make_unique<Engine>(std::vector<std::unique_ptr<Law>>())),
        builder_(engine_.get()),
        run_(*engine_) {
    run_.run().set_run_id(name);
    run_.run().set_run_name(name);
  }

  SimulatedRun& operator*() { return run_; }
  SimulatedRun* operator->() { return &run_; }

  /// Optimizer settings at step 0, for all parameters.
  void optimize(const std::string& optimizer, double learning_rate) {
    run_.run().set_optimizer(optimizer);
    v1::ParameterGroup group;
    group.set_learning_rate(learning_rate);
    settings_ = {optimizer, group};
  }
  void optimize(const std::string& optimizer, const v1::ParameterGroup& group) {
    run_.run().set_optimizer(optimizer);
    settings_ = {optimizer, group};
  }

  void open() {
    run_.open();
    if (!settings_.first.empty()) run_.settings(0, settings_.first, settings_.second);
  }

  RunDigest take() {
    run_.finish();
    RunDigest digest = builder_.take();
    digest.path = digest.name;
    return digest;
  }

 private:
  std::unique_ptr<Engine> engine_;
  DigestBuilder builder_;
  SimulatedRun run_;
  std::pair<std::string, v1::ParameterGroup> settings_;
};

/// The finding of a law about whole sweeps; the first where there are several.
inline ComparisonFinding whole(const std::vector<ComparisonFinding>& findings) {
  for (const ComparisonFinding& finding : findings) {
    if (finding.scope == "runs") return finding;
  }
  ADD_FAILURE() << "no finding about the runs";
  return {};
}

/// The finding about a statistic of a layer.
inline ComparisonFinding part(const std::vector<ComparisonFinding>& findings,
                              const std::string& statistic, const std::string& scope) {
  for (const ComparisonFinding& finding : findings) {
    if (finding.scope == scope && finding.evidence_statistic == statistic) return finding;
  }
  ADD_FAILURE() << "no finding about " << statistic << " at " << scope;
  return {};
}

}  // namespace tycho::analyzer
