#pragma once

#include <memory>
#include <vector>

#include "tycho/analyzer/frame.h"
#include "tycho/analyzer/verdict.h"

namespace tycho::analyzer {

/// One falsifiable prediction. Streaming: bounded memory, the same code live, in replay and in the
/// report.
class Law {
 public:
  virtual ~Law() = default;
  virtual const LawDescription& description() const = 0;
  /// Before the first frame, and again whenever the structure of the model becomes known or a
  /// segment adds layers or parameters. Ids never change meaning, so what was accumulated stays
  /// valid.
  virtual void begin(const RunContext& context) = 0;
  virtual void observe(const Frame& frame) = 0;
  /// Findings from the frames observed so far; may be called at any time and does not change the
  /// state.
  virtual std::vector<Finding> findings() const = 0;
};

/// New instances of all built-in laws, in the order of the report.
std::vector<std::unique_ptr<Law>> make_laws();

}  // namespace tycho::analyzer
