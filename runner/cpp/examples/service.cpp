// A service that answers requests over a socket, with HTTP's simplest form:
//
//   arforge-service l.bundle 8080 [--target tensorrt-rtx] [--precision fp16]
//   curl 'http://127.0.0.1:8080/?class=207&seed=1&schedule=zipar:16&guidance=2' > image.ppm
//   curl 'http://127.0.0.1:8080/?ids=3,9,1&seed=1' > image.ppm      # a prompt, by the ids of its tokens
//
// One thread a connection; requests of one schedule that wait together are decoded together, `timeout=` seconds at
// most. A client that hangs up cancels its request, waiting or running; one too many gets 503 at once.
#include <arforge_batcher.hpp>

#include <arpa/inet.h>
#include <charconv>
#include <cstring>
#include <iostream>
#include <map>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

namespace {

constexpr std::size_t MAX_HEAD = 8192; // bytes of a request
constexpr int SECONDS = 30;            // that a client may take to send or receive
constexpr std::int64_t BATCH = 8;      // images decoded together
constexpr std::int64_t WAITING = 64;   // images that wait at most
constexpr double LOOK = 0.05;          // seconds between looks whether a client is there

template <class T>
T number(const std::string& name, const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [stop, failed] = std::from_chars(text.data(), end, value);
  if (failed != std::errc() || stop != end) {
    throw arforge::Error(arforge::Code::request, name + ": '" + text + "' is not a number that fits");
  }
  return value;
}

// Submits the request of "GET /?class=3&seed=1 HTTP/1.1".
arforge::Answer submit(arforge::Batcher& batcher, const std::string& head) {
  arforge::Request request;
  std::vector<std::int64_t> ids; // which it refers to
  std::optional<double> timeout;
  const std::map<std::string, std::function<void(const std::string& name, const std::string& value)>> parameters = {
      {"class", [&](auto& name, auto& value) { request.classes = {number<std::int64_t>(name, value)}; }},
      {"ids",
       [&](auto& name, auto& value) {
         ids.clear();
         for (std::size_t start = 0, end = 0; start <= value.size(); start = end + 1) {
           end = std::min(value.find(',', start), value.size());
           ids.push_back(number<std::int64_t>(name, value.substr(start, end - start)));
         }
         request.ids = {{ids.data(), static_cast<std::int64_t>(ids.size())}};
       }},
      {"seed", [&](auto& name, auto& value) { request.seeds = {number<std::uint64_t>(name, value)}; }},
      {"guidance", [&](auto& name, auto& value) { request.guidance = number<double>(name, value); }},
      {"temperature", [&](auto& name, auto& value) { request.temperature = number<double>(name, value); }},
      {"top_k", [&](auto& name, auto& value) { request.top_k = number<std::int64_t>(name, value); }},
      {"top_p", [&](auto& name, auto& value) { request.top_p = number<double>(name, value); }},
      {"schedule", [&](auto&, auto& value) { request.schedule = value; }},
      {"timeout", [&](auto& name, auto& value) { timeout = number<double>(name, value); }},
  };
  if (head.rfind("GET /", 0) != 0) {
    throw arforge::Error(arforge::Code::request, "send GET /?class=N|ids=N,N&seed=N&schedule=TEXT&guidance=X");
  }
  const std::size_t end = head.find_first_of(" \r\n", 5);
  for (std::size_t next = 0, start = std::min(head.find('?'), end); start < end; start = next) {
    next = std::min(head.find('&', start + 1), end);
    const std::string part = head.substr(start + 1, next - start - 1);
    const std::size_t equals = std::min(part.find('='), part.size());
    const auto found = parameters.find(part.substr(0, equals));
    if (found == parameters.end()) {
      throw arforge::Error(arforge::Code::request, "no such parameter: " + part.substr(0, equals));
    }
    found->second(found->first, part.substr(std::min(equals + 1, part.size())));
  }
  return batcher.submit(request, timeout);
}

// The result, unless the client hangs up before.
const arforge::Result& result_for(int client, arforge::Answer& answer) {
  for (char byte = 0; !answer.wait(LOOK);) {
    if (recv(client, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0) {
      answer.cancel();
    }
  }
  return answer.get();
}

std::string status_of(arforge::Code code) {
  switch (code) {
  case arforge::Code::request:
  case arforge::Code::schedule:
    return "400 Bad Request";
  case arforge::Code::queue_full:
    return "503 Service Unavailable\r\nRetry-After: 1";
  case arforge::Code::deadline_exceeded:
    return "504 Gateway Timeout";
  default:
    return "500 Internal Server Error";
  }
}

// The pixels of one image as a portable pixmap, or what is wrong, with its status.
std::string reply_to(arforge::Batcher& batcher, const std::string& head, int client) {
  std::string status = "200 OK", type = "image/x-portable-pixmap", body;
  try {
    arforge::Answer answer = submit(batcher, head);
    const arforge::Result& result = result_for(client, answer);
    body = "P6\n" + std::to_string(result.width) + " " + std::to_string(result.height) + "\n255\n";
    body.append(result.pixels.begin(), result.pixels.end());
  } catch (const arforge::Error& error) {
    status = status_of(error.code());
    type = "text/plain";
    body = error.what() + std::string("\n");
  }
  return "HTTP/1.1 " + status + "\r\nContent-Type: " + type + "\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\nConnection: close\r\n\r\n" + body;
}

void serve(arforge::Batcher& batcher, int client) {
  const timeval patience{SECONDS, 0};
  setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  std::string head;
  while (head.find("\r\n\r\n") == std::string::npos && head.size() < MAX_HEAD) {
    char part[1024];
    const ssize_t size = recv(client, part, sizeof part, 0);
    if (size <= 0) {
      close(client);
      return;
    }
    head.append(part, static_cast<std::size_t>(size));
  }
  const std::string reply = reply_to(batcher, head, client);
  const char* rest = reply.data();
  for (ssize_t size = 1; size > 0; rest += size) {
    size = send(client, rest, static_cast<std::size_t>(reply.data() + reply.size() - rest), MSG_NOSIGNAL);
  }
  close(client);
}

} // namespace

int main(int count, char** words) {
  arforge::Options options;
  const std::map<std::string, std::string*> named = {{"--target", &options.target},
                                                     {"--precision", &options.precision}};
  bool known = count >= 3 && count % 2 == 1;
  for (int index = 3; index + 1 < count; index += 2) {
    const auto option = named.find(words[index]);
    known = known && option != named.end();
    if (known) {
      *option->second = words[index + 1];
    }
  }
  if (!known) {
    std::cerr << "usage: arforge-service BUNDLE PORT [--target TEXT] [--precision TEXT]\n";
    return 2;
  }
  try {
    arforge::Runner runner = arforge::Runner::open(words[1], options);
    arforge::Batcher batcher(runner, BATCH, WAITING, [](const arforge::Batched& batch) {
      std::cerr << "a batch of " << batch.images << (batch.done ? "" : ", cancelled or failed") << '\n';
    });
    const int server = socket(AF_INET, SOCK_STREAM, 0);
    const int on = 1;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<std::uint16_t>(std::stoi(words[2])));
    socklen_t size = sizeof address;
    auto* place = reinterpret_cast<sockaddr*>(&address);
    if (bind(server, place, size) != 0 || listen(server, 64) != 0 || getsockname(server, place, &size) != 0) {
      throw std::runtime_error(std::string("cannot listen: ") + std::strerror(errno));
    }
    std::cout << "listening on 127.0.0.1:" << ntohs(address.sin_port) << '\n' << std::flush;
    for (int client = accept(server, nullptr, nullptr); client >= 0; client = accept(server, nullptr, nullptr)) {
      std::thread(serve, std::ref(batcher), client).detach();
    }
  } catch (const std::exception& error) {
    std::cerr << "arforge-service: " << error.what() << '\n';
  }
  return 1;
}
