#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <unordered_map>

#include "tycho/probe.h"

namespace tycho {

/// Builds the Record of one probe at one step.
class RecordBuilder : public Recorder {
 public:
  /// `ids`: the probe's own statistics. Both references outlive the builder.
  using Say = std::function<void(v1::Event::Kind, const std::string& code,
                                 const std::string& message, v1::Scope, uint32_t entity)>;
  RecordBuilder(const std::unordered_map<std::string, uint32_t>& ids, const Say& say, int64_t step)
      : ids_(ids), say_(say) {
    record_.set_step(step);
  }

  void run(const std::string& statistic, double value, double standard_error) override;
  void layer(const std::string& statistic, uint32_t layer, double value,
             double standard_error) override;
  void parameter(const std::string& statistic, uint32_t parameter, double value,
                 double standard_error) override;
  void index(const std::string& statistic, uint32_t position, double value,
             double standard_error) override;
  void event(v1::Event::Kind kind, const std::string& code, const std::string& message,
             v1::Scope scope, uint32_t entity) override;

  /// Columns in order of first use, entities ascending. Empty where nothing was recorded.
  v1::Record take();

 private:
  void add(const std::string& statistic, v1::Scope scope, uint32_t entity, double value,
           double standard_error);

  const std::unordered_map<std::string, uint32_t>& ids_;
  const Say& say_;
  v1::Record record_;
  std::unordered_map<uint64_t, int> columns_;  // statistic and scope
};

}  // namespace tycho
