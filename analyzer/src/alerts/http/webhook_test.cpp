#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <nlohmann/json.hpp>
#include <thread>

#include "src/alerts/alerts.h"

namespace tycho::analyzer {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;

Alert an_alert() {
  Alert alert;
  alert.code = "loss_diverged";
  alert.severity = Severity::kAlarm;
  alert.title = "Überlauf \xff \"quoted\"\r\nX-Evil: 1";
  alert.run = "a";
  alert.step = 7;
  return alert;
}

std::unique_ptr<AlertHook> hook_of(const std::string& url, milliseconds timeout = seconds(60)) {
  auto opened = open_webhook(url, timeout);
  EXPECT_TRUE(opened.ok()) << opened.status().message();
  return std::move(opened).value();
}

class WebhookTest : public ::testing::Test {
 protected:
  void SetUp() override {
    server_.Post("/hook", [this](const httplib::Request& request, httplib::Response& response) {
      const std::lock_guard<std::mutex> lock(mutex_);
      requests_.push_back(request);
      response.status = statuses_.empty() ? 200 : statuses_.front();
      if (!statuses_.empty()) statuses_.erase(statuses_.begin());
      response.set_content("whatever it says", "text/plain");
    });
    server_.Post("/moved", [](const httplib::Request&, httplib::Response& response) {
      response.set_redirect("/hook");
    });
    server_.Post("/endless", [](const httplib::Request&, httplib::Response& response) {
      response.set_chunked_content_provider("text/plain", [](size_t, httplib::DataSink& sink) {
        const std::string bytes(1000, 'x');
        std::this_thread::sleep_for(milliseconds(5));
        return sink.write(bytes.data(), bytes.size());
      });
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::sleep_for(milliseconds(1));
  }
  void TearDown() override {
    server_.stop();
    thread_.join();
  }
  std::string url(const std::string& path) const {
    return "http://127.0.0.1:" + std::to_string(port_) + path;
  }

  httplib::Server server_;
  std::thread thread_;
  int port_ = 0;
  std::mutex mutex_;
  std::vector<httplib::Request> requests_;
  std::vector<int> statuses_;
};

TEST_F(WebhookTest, PostsJson) {
  const auto outcome = hook_of(url("/hook?key=a+b,%20c#fragment"))->deliver(an_alert());
  EXPECT_TRUE(outcome.delivered) << outcome.why;
  ASSERT_EQ(requests_.size(), 1u);
  const auto& request = requests_[0];
  EXPECT_EQ(request.method, "POST");
  EXPECT_EQ(request.target, "/hook?key=a+b,%20c");
  EXPECT_EQ(request.get_header_value("Content-Type"), "application/json");
  EXPECT_FALSE(request.has_header("X-Evil"));
  const json object = json::parse(request.body);
  EXPECT_EQ(object["code"], "loss_diverged");
  EXPECT_EQ(object["step"], 7);
}

TEST_F(WebhookTest, TriesAgainWhatMayComeThroughLater) {
  statuses_ = {500, 503, 429, 408, 404, 400, 302};
  const auto hook = hook_of(url("/hook"));
  for (const int status : {500, 503, 429, 408}) {
    const auto outcome = hook->deliver(an_alert());
    EXPECT_FALSE(outcome.delivered);
    EXPECT_TRUE(outcome.try_again) << status;
    EXPECT_EQ(outcome.why, "it answered " + std::to_string(status));
  }
  for (const int status : {404, 400, 302}) {
    const auto outcome = hook->deliver(an_alert());
    EXPECT_FALSE(outcome.delivered);
    EXPECT_FALSE(outcome.try_again) << status;
  }
  const size_t before = requests_.size();
  EXPECT_EQ(hook_of(url("/moved"))->deliver(an_alert()).why, "it answered 302");
  EXPECT_EQ(requests_.size(), before);
}

TEST_F(WebhookTest, DeliversThroughAServerThatFailsAtFirst) {
  statuses_ = {503, 503};
  AlertOptions options;
  options.webhook = url("/hook?token=secret");
  options.sender.first_pause = milliseconds(1);
  auto alerts = Alerts::open(options);
  ASSERT_TRUE(alerts.ok());
  alerts.value()->send({an_alert()});
  alerts.value()->close(seconds(60));
  EXPECT_EQ(alerts.value()->counters().sent, 1u);
  EXPECT_EQ(alerts.value()->counters().attempts, 3u);
  const auto troubles = alerts.value()->take_troubles();
  ASSERT_EQ(troubles.size(), 1u);
  EXPECT_NE(troubles[0].find("it answered 503"), std::string::npos);
  EXPECT_EQ(troubles[0].find("secret"), std::string::npos);
}

TEST_F(WebhookTest, BoundsAnAnswerThatDoesNotEnd) {
  const auto outcome = hook_of(url("/endless"), milliseconds(300))->deliver(an_alert());
  EXPECT_FALSE(outcome.delivered);
  EXPECT_TRUE(outcome.try_again);
  EXPECT_EQ(outcome.why, "it took longer than 0.3 s");
}

// Takes connections, and says nothing.
class SilentServer {
 public:
  SilentServer() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(::bind(socket_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(socket_, 10), 0);
    EXPECT_EQ(::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~SilentServer() { ::close(socket_); }
  SilentServer(const SilentServer&) = delete;
  SilentServer& operator=(const SilentServer&) = delete;
  int port() const { return port_; }

 private:
  int socket_;
  int port_ = 0;
};

TEST(Webhook, BoundsAServerThatSaysNothing) {
  const SilentServer server;
  for (const char* scheme : {"http", "https"}) {
    const std::string url = std::string(scheme) + "://127.0.0.1:" + std::to_string(server.port());
    auto opened = open_webhook(url, milliseconds(300));
    if (!opened.ok()) continue;  // Built without OpenSSL.
    const auto outcome = opened.value()->deliver(an_alert());
    EXPECT_FALSE(outcome.delivered);
    EXPECT_TRUE(outcome.try_again);
  }
}

TEST(Webhook, CanBeCancelled) {
  const SilentServer server;
  const auto hook = hook_of("http://127.0.0.1:" + std::to_string(server.port()), seconds(1000));
  std::thread canceller([&] {
    std::this_thread::sleep_for(milliseconds(100));
    hook->cancel();
  });
  const auto outcome = hook->deliver(an_alert());
  canceller.join();
  EXPECT_EQ(outcome.why, "there was no time left");
  EXPECT_FALSE(outcome.try_again);
}

TEST(Webhook, SaysThatNobodyAnswers) {
  int port = 0;
  { port = SilentServer().port(); }
  const auto outcome = hook_of("http://127.0.0.1:" + std::to_string(port))->deliver(an_alert());
  EXPECT_FALSE(outcome.delivered);
  EXPECT_TRUE(outcome.try_again);
  EXPECT_EQ(outcome.why, "it cannot be reached");
  EXPECT_FALSE(hook_of("http://no.such.host.invalid/x")->deliver(an_alert()).delivered);
}

TEST(Webhook, RefusesWhatIsNoAddress) {
  for (const std::string url :
       {"", "example.org", "ftp://example.org/", "http://", "http:///path", "https://?x",
        "http://user:password@example.org/", "http://example.org/a b",
        "http://example.org/\r\nX: 1", "httpx://example.org", "http://ex\xc3\xa4mple.org/"}) {
    const auto opened = open_webhook(url, seconds(1));
    ASSERT_FALSE(opened.ok()) << url;
    EXPECT_EQ(opened.status().message().find("password@"), std::string::npos);
  }
}

}  // namespace
}  // namespace tycho::analyzer
