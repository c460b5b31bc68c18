#include "value_stream.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <limits>

namespace tycho::analyzer {
namespace {

class Stream : public trace::MessageHandler {
 public:
  explicit Stream(const std::function<bool(const Value&)>& take) : take_(take) {}

  bool on_segment(const trace::SegmentInfo&, const v1::RunDescription&,
                  const v1::ModelDescription& model,
                  const v1::StatisticRegistry& registry) override {
    layers_.clear();
    parameters_.clear();
    statistics_.clear();
    for (const auto& layer : model.layer()) layers_.push_back("layer:" + layer.path());
    for (const auto& parameter : model.parameter())
      parameters_.push_back("param:" + parameter.name());
    for (const auto& statistic : registry.statistic()) {
      if (statistic.id() > 100000) continue;  // Ids are counted from 0; this one is damaged.
      if (statistics_.size() <= statistic.id()) statistics_.resize(statistic.id() + 1);
      statistics_[statistic.id()] = statistic.name();
    }
    return true;
  }

  bool on_record(const std::string&, const v1::Record& record, int64_t time_ns) override {
    Value value;
    value.step = record.step();
    value.time_ns = time_ns;
    for (const v1::Column& column : record.column()) {
      std::string unknown_statistic;
      if (column.statistic() < statistics_.size() && !statistics_[column.statistic()].empty()) {
        value.statistic = &statistics_[column.statistic()];
      } else {
        unknown_statistic = fmt::format("statistic_{}", column.statistic());
        value.statistic = &unknown_statistic;
      }
      const auto* names = column.scope() == v1::SCOPE_LAYER       ? &layers_
                          : column.scope() == v1::SCOPE_PARAMETER ? &parameters_
                                                                  : nullptr;
      for (int i = 0; i < column.value_size(); ++i) {
        std::string own_scope;
        if (column.scope() == v1::SCOPE_INDEX && i < column.entity_size()) {
          own_scope = fmt::format("index:{}", column.entity(i));
          value.scope = &own_scope;
        } else if (names == nullptr) {
          value.scope = &run_;
        } else if (i < column.entity_size() && column.entity(i) < names->size()) {
          value.scope = &(*names)[column.entity(i)];
        } else {
          own_scope =
              fmt::format("{}:#{}", column.scope() == v1::SCOPE_LAYER ? "layer" : "param",
                          i < column.entity_size() ? column.entity(i) : static_cast<uint32_t>(i));
          value.scope = &own_scope;
        }
        value.value = column.value(i);
        value.standard_error = i < column.standard_error_size()
                                   ? column.standard_error(i)
                                   : std::numeric_limits<double>::quiet_NaN();
        if (!take_(value)) return false;
        ++values_;
      }
    }
    return true;
  }

  uint64_t values() const { return values_; }

 private:
  const std::function<bool(const Value&)>& take_;
  const std::string run_ = "run";
  std::vector<std::string> layers_;
  std::vector<std::string> parameters_;
  std::vector<std::string> statistics_;
  uint64_t values_ = 0;
};

}  // namespace

Result<ExportOutcome> for_each_value(const std::string& run,
                                     const std::function<bool(const Value&)>& take) {
  auto reader = trace::RunReader::open(run);
  if (!reader.ok()) return reader.status();
  Stream stream(take);
  if (Status status = reader.value()->read(stream); !status.ok()) return status;
  ExportOutcome outcome;
  outcome.values = stream.values();
  outcome.losses = trace::losses(reader.value()->segments(), reader.value()->skipped());
  return outcome;
}

Status write_failure() {
  return Status(errno == ENOSPC ? Status::Code::kNoSpace : Status::Code::kIoError,
                fmt::format("cannot write the output: {}", std::strerror(errno)));
}

}  // namespace tycho::analyzer
