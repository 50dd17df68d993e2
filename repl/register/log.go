package register

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// quiet is how long a message of etcd is not told again.
const quiet = time.Minute

// zapLogger makes etcd's messages ours. etcd tells its whole life at level
// info, and warns several times a second while a member is away: its warnings
// become infos, once a minute each, and the rest goes to debug. onError is told
// every error, the last of which is why a member ends.
// When closing is set everything goes to debug: etcd's own end looks like a
// failure to it.
func zapLogger(logger *slog.Logger, closing *atomic.Bool, onError func(string)) *zap.Logger {
	return zap.New(&zapCore{shared: &zapShared{logger: logger, closing: closing, onError: onError, said: map[string]time.Time{}}})
}

// expected are warnings about how we want it.
var expected = []string{
	"Running http and grpc server on single port. This is not recommended for production.",
	"simple token is not cryptographically signed",
}

type zapShared struct {
	logger  *slog.Logger
	closing *atomic.Bool
	onError func(string)

	mu   sync.Mutex
	said map[string]time.Time // by message
}

type zapCore struct {
	shared *zapShared
	fields []zapcore.Field
}

func level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

// Enabled implements zapcore.LevelEnabler.
func (c *zapCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.ErrorLevel || c.shared.logger.Enabled(context.Background(), level(l))
}

// With implements zapcore.Core.
func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{c.shared, append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

// Check implements zapcore.Core.
func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		f.AddTo(enc)
	}
	if c.shared.closing.Load() || slices.Contains(expected, e.Message) {
		e.Level = zapcore.DebugLevel
	}
	if e.Level >= zapcore.ErrorLevel && c.shared.onError != nil {
		text := e.Message
		if err, ok := enc.Fields["error"].(string); ok {
			text += ": " + err
		}
		c.shared.onError(text)
	}
	if e.Level >= zapcore.WarnLevel && e.Level < zapcore.DPanicLevel && !c.shared.due(e.Message) {
		return nil
	}
	if !c.Enabled(e.Level) {
		return nil
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		attrs = append(attrs, slog.Any(k, v))
	}
	c.shared.logger.LogAttrs(context.Background(), level(e.Level), "etcd: "+e.Message, attrs...)
	return nil
}

func (s *zapShared) due(message string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.said[message]) < quiet {
		return false
	}
	s.said[message] = time.Now()
	return true
}

// Sync implements zapcore.Core.
func (c *zapCore) Sync() error { return nil }
