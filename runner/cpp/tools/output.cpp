#include "output.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <random>
#include <sys/stat.h>
#include <unistd.h>

#include "descriptor_buffer.h"

namespace {

namespace fs = std::filesystem;

constexpr int MAX_LINKS = 40;

[[noreturn]] void refuse(const std::string& path, int error) {
  const fs::path folder = fs::path(path).parent_path();
  const std::string hint = error == ENOENT ? " (make the folder " + folder.string() + " first)" : "";
  const std::string problem = error == EISDIR ? "it is a folder" : std::strerror(error);
  throw OutputError("cannot write " + path + ": " + problem + hint);
}

// Whether a file beside the one that is meant cannot be had, though that one can be written.
bool no_file_beside(int error) { return error == EACCES || error == EPERM || error == EROFS; }

// Also where the one that is meant is a mount of its own, as containers have.
bool no_replacing(int error) { return no_file_beside(error) || error == EBUSY || error == EXDEV; }

// What lies at a path, links followed; nothing where nothing does.
std::optional<struct stat> facts_of(const std::string& path) {
  struct stat facts{};
  if (stat(path.c_str(), &facts) == 0) {
    return facts;
  }
  if (errno != ENOENT) {
    refuse(path, errno);
  }
  return std::nullopt;
}

// The open file of this process that a path stands for: opened anew, it would be written from its beginning.
std::optional<int> descriptor_of(const std::string& path) {
  const std::string name = fs::path(path).lexically_normal().string();
  if (name == "/dev/stdout" || name == "/dev/stderr") {
    return name == "/dev/stdout" ? STDOUT_FILENO : STDERR_FILENO;
  }
  for (const std::string folder : {"/dev/fd/", "/proc/self/fd/"}) {
    const std::string number = name.rfind(folder, 0) == 0 ? name.substr(folder.size()) : "";
    if (!number.empty() && number.size() < 10 && number.find_first_not_of("0123456789") == std::string::npos) {
      return std::stoi(number);
    }
  }
  return std::nullopt;
}

// Where links lead, also to a file that is not there yet.
fs::path place_of(const std::string& path) {
  fs::path place = path;
  for (int links = 0; fs::is_symlink(fs::symlink_status(place)); links++) {
    if (links == MAX_LINKS) {
      refuse(path, ELOOP);
    }
    const fs::path next = fs::read_symlink(place);
    place = next.is_absolute() ? next : place.parent_path() / next;
  }
  std::error_code failed;
  const fs::path folder = fs::canonical(place.has_parent_path() ? place.parent_path() : fs::path("."), failed);
  if (failed) {
    refuse(path, failed.value());
  }
  return folder / place.filename();
}

fs::path beside(const fs::path& target) {
  std::random_device random;
  std::string name = ".arforge-";
  for (int digit = 0; digit < 16; digit++) {
    name += "0123456789abcdef"[random() % 16];
  }
  return target.parent_path() / (name + ".partial");
}

// A new file, for its owner alone as long as it is not known to whom the file belongs that it will replace.
int create(const fs::path& partial, bool replaces) {
  return open(partial.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, replaces ? 0600 : 0666);
}

// What lies at a path that can be written; throws for a folder, and for what may not be written.
std::optional<struct stat> writable_facts(const std::string& path) {
  const std::optional<struct stat> facts = facts_of(path);
  if (fs::path(path).filename().empty() || (facts && S_ISDIR(facts->st_mode))) {
    refuse(path, EISDIR);
  }
  if (facts && access(path.c_str(), W_OK) != 0) {
    refuse(path, errno);
  }
  return facts;
}

bool passes_on(const std::optional<struct stat>& facts) { return facts && !S_ISREG(facts->st_mode); }

// Throws unless `path` can be written. Its place; nothing for what passes on what it is given.
std::optional<fs::path> tried(const std::string& path) {
  if (const std::optional<int> descriptor = descriptor_of(path)) { // open already, whoever its file belongs to
    if (fcntl(*descriptor, F_GETFL) < 0) {
      refuse(path, errno);
    }
    return std::nullopt;
  }
  const std::optional<struct stat> facts = writable_facts(path);
  if (passes_on(facts)) {
    return std::nullopt;
  }
  fs::path target = place_of(path);
  const fs::path partial = beside(target);
  const int descriptor = create(partial, facts.has_value());
  if (descriptor >= 0) {
    close(descriptor);
    unlink(partial.c_str());
  } else if (!facts || !no_file_beside(errno)) {
    refuse(path, errno);
  }
  return target;
}

} // namespace

struct Output::File {
  std::string path;
  std::optional<struct stat> facts; // of what is there already
  fs::path target, partial;         // empty: nothing is put in its place
  int descriptor;
  DescriptorBuffer buffer;
  std::ostream stream;

  File(std::string given, const std::optional<struct stat>& found, fs::path goal, fs::path beside_it, int opened)
      : path(std::move(given)), facts(found), target(std::move(goal)), partial(std::move(beside_it)),
        descriptor(opened), buffer(opened), stream(&buffer) {
    if (descriptor < 0) {
      refuse(path, errno);
    }
  }

  ~File() {
    if (descriptor >= 0) {
      close(descriptor);
    }
    if (!partial.empty()) {
      unlink(partial.c_str());
    }
  }

  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Gives the new file owner, group and mode of the one that it replaces, and its place; an error number, or 0.
  [[nodiscard]] int replace() const {
    struct stat own{};
    if (facts) {
      const bool same = stat(partial.c_str(), &own) == 0 && own.st_uid == facts->st_uid && own.st_gid == facts->st_gid;
      if ((!same && chown(partial.c_str(), facts->st_uid, facts->st_gid) != 0) ||
          chmod(partial.c_str(), facts->st_mode & 07777) != 0) {
        return errno;
      }
    }
    return rename(partial.c_str(), target.c_str()) == 0 ? 0 : errno;
  }

  // Copies the new file into the one that is there.
  void copy_into_place() const {
    const int opened = open(target.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC);
    if (opened < 0) {
      refuse(path, errno);
    }
    DescriptorBuffer into(opened);
    std::ostream out(&into);
    out << std::ifstream(partial, std::ios::binary).rdbuf() << std::flush;
    if (close(opened) != 0 || !out) {
      refuse(path, out ? errno : into.error());
    }
  }
};

void check_outputs(const std::vector<std::pair<std::string, std::string>>& outputs) {
  std::map<fs::path, std::string> options;
  for (const auto& [option, path] : outputs) {
    if (path.empty()) {
      continue;
    }
    const std::optional<fs::path> place = tried(path);
    if (!place) {
      continue;
    }
    if (const auto [other, first] = options.emplace(*place, option); !first) {
      std::string problem = other->second;
      problem.append(" and ").append(option).append(" both write ").append(path).append(": name two files");
      throw OutputError(problem);
    }
  }
}

bool is_standard_output(const std::string& path) { return descriptor_of(path) == STDOUT_FILENO; }

Output::Output(const std::string& path) {
  if (const std::optional<int> descriptor = descriptor_of(path)) {
    file_ = std::make_unique<File>(path, std::nullopt, "", "", dup(*descriptor));
    return;
  }
  const std::optional<struct stat> facts = writable_facts(path);
  if (passes_on(facts)) {
    file_ = std::make_unique<File>(path, facts, "", "", open(path.c_str(), O_WRONLY | O_CLOEXEC));
  } else {
    const fs::path target = place_of(path);
    const fs::path partial = beside(target);
    const int descriptor = create(partial, facts.has_value());
    if (descriptor < 0 && facts && no_file_beside(errno)) {
      const int in_place = open(target.c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC);
      file_ = std::make_unique<File>(path, facts, target, "", in_place);
    } else {
      file_ = std::make_unique<File>(path, facts, target, partial, descriptor);
    }
  }
}

Output::Output(Output&&) noexcept = default;
Output::~Output() = default;

std::ostream& Output::stream() { return file_->stream; }

void Output::finish() {
  file_->stream.flush();
  if (!file_->stream) {
    refuse(file_->path, file_->buffer.error());
  }
  if (close(std::exchange(file_->descriptor, -1)) != 0) {
    refuse(file_->path, errno);
  }
  if (file_->partial.empty()) {
    return;
  }
  const int error = file_->replace();
  if (error == 0) {
    file_->partial.clear();
  } else if (file_->facts && no_replacing(error)) {
    file_->copy_into_place();
  } else {
    refuse(file_->path, error);
  }
}
