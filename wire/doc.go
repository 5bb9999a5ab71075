// Package wire holds what crosses a process boundary or is persisted: the log's
// commands and rows, the client's frames, the peers' calls, and the codes that
// name every refusal. It holds no behaviour beyond encoding, and imports
// nothing of the project, so that every other package can share it.
package wire

// Version is the version of the client and peer protocols. A node refuses
// another one with WRONG_VERSION.
const Version = 1

// FeatureLevel is the newest set of log commands that this build can apply.
const FeatureLevel = 1
