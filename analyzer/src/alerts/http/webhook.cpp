#include <fmt/format.h>
#include <httplib.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "src/alerts/alert_hook.h"

namespace tycho::analyzer {
namespace {

using std::chrono::milliseconds;

struct Address {
  std::string origin;  // scheme://host:port
  std::string path;    // with the query
};

Result<Address> parse(const std::string& url) {
  const auto wrong = [&](const char* what) {
    // The address may be a secret as a whole.
    return Status(Status::Code::kInvalidArgument, fmt::format("--webhook: {}", what));
  };
  const size_t scheme = url.find("://");
  if (scheme == std::string::npos ||
      (url.compare(0, scheme, "http") != 0 && url.compare(0, scheme, "https") != 0))
    return wrong("the address has to begin with http:// or https://");
  if (std::any_of(url.begin(), url.end(), [](char c) { return c <= ' ' || c > '~'; }))
    return wrong("the address has a character that has to be encoded");
  const size_t host = scheme + 3;
  const size_t end = std::min(url.find_first_of("/?#", host), url.size());
  if (end == host) return wrong("the address names no host");
  if (url.substr(host, end - host).find('@') != std::string::npos)
    return wrong("user and password in the address are not supported");
  Address address;
  address.origin = url.substr(0, end);
  address.path = url.substr(end, std::min(url.find('#', end), url.size()) - end);
  if (address.path.empty() || address.path.front() != '/') address.path.insert(0, "/");
  return address;
}

std::string words(httplib::Error error) {
  switch (error) {
    case httplib::Error::Connection:
      return "it cannot be reached";
    case httplib::Error::Read:
      return "it closed the connection without an answer";
    case httplib::Error::SSLConnection:
      return "there is no encrypted connection";
    case httplib::Error::SSLServerVerification:
      return "its certificate is not trusted";
    default:
      return httplib::to_string(error);
  }
}

/// Stops a client at a time, whatever it waits for: the library's timeouts are of single reads.
class Deadline {
 public:
  Deadline(httplib::Client* client, milliseconds after)
      : thread_([this, client, after] {
          std::unique_lock<std::mutex> lock(mutex_);
          if (wake_.wait_for(lock, after, [this] { return done_ || now_; }) && done_) return;
          now_ = true;
          // While it connects, which has a time limit of its own, stop() waits, and stops nothing.
          while (!done_) {
            lock.unlock();
            client->stop();
            lock.lock();
            wake_.wait_for(lock, milliseconds(100), [this] { return done_; });
          }
        }) {}
  ~Deadline() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;
  void now() {
    const std::lock_guard<std::mutex> lock(mutex_);
    now_ = true;
    wake_.notify_all();
  }
  bool is_over() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return now_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool done_ = false;
  bool now_ = false;
  std::thread thread_;
};

class Webhook : public AlertHook {
 public:
  Webhook(Address address, milliseconds timeout)
      : address_(std::move(address)), timeout_(timeout) {}

  std::string name() const override { return address_.origin; }

  void cancel() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    cancelled_ = true;
    if (deadline_ != nullptr) deadline_->now();
  }

  Outcome deliver(const Alert& alert) override {
    httplib::Client client(address_.origin);
    const auto seconds = static_cast<time_t>(timeout_.count() / 1000);
    const auto micros = static_cast<time_t>(timeout_.count() % 1000 * 1000);
    client.set_connection_timeout(seconds, micros);
    client.set_read_timeout(seconds, micros);
    client.set_write_timeout(seconds, micros);
    client.set_url_encode(false);
    Deadline deadline(&client, timeout_);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (cancelled_) return {false, false, "there was no time left"};
      deadline_ = &deadline;
    }
    httplib::Request request;
    request.method = "POST";
    request.path = address_.path;
    request.headers = {{"Content-Type", "application/json"}, {"User-Agent", "tycho"}};
    request.body = alert_json(alert);
    // Whatever the answer says, however long it is.
    request.content_receiver = [](const char*, size_t, uint64_t, uint64_t) { return true; };
    const httplib::Result result = client.send(request);
    const std::lock_guard<std::mutex> lock(mutex_);
    deadline_ = nullptr;
    return outcome(result, deadline.is_over());
  }

 private:
  Outcome outcome(const httplib::Result& result, bool late) const {
    if (result) {
      const int status = result->status;
      if (status / 100 == 2) return {true, false, ""};
      return {false, status / 100 == 5 || status == 408 || status == 429,
              fmt::format("it answered {}", status)};
    }
    if (cancelled_) return {false, false, "there was no time left"};
    if (late)
      return {
          false, true,
          fmt::format("it took longer than {:g} s", static_cast<double>(timeout_.count()) / 1000)};
    return {false, true, words(result.error())};
  }

  const Address address_;
  const milliseconds timeout_;
  std::mutex mutex_;
  Deadline* deadline_ = nullptr;
  bool cancelled_ = false;
};

}  // namespace

Result<std::unique_ptr<AlertHook>> open_webhook(const std::string& url, milliseconds timeout) {
  auto address = parse(url);
  if (!address.ok()) return address.status();
  try {
    const httplib::Client client(address.value().origin);
  } catch (const std::exception&) {
    return Status(Status::Code::kInvalidArgument,
                  "--webhook: https needs a cpp-httplib that was built with OpenSSL");
  }
  return std::unique_ptr<AlertHook>(std::make_unique<Webhook>(std::move(address).value(), timeout));
}

}  // namespace tycho::analyzer
