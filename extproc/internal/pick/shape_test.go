package pick

import (
	"math"
	"math/rand/v2"
	"testing"

	"millrace.dev/millrace/internal/apis"
)

func TestShapesAreDistinct(t *testing.T) {
	limits := map[int]int{-1: 0, 0: 1, 16: 2, 1: 1, 63: 2, 64: 3, 255: 3, 256: 4, 1024: 5, 4096: 6, 16384: 7, 1 << 30: 7}
	for limit, want := range limits {
		if got := (&Shape{Limit: limit}).limit(); got != want {
			t.Errorf("a limit of %d is in bucket %d, want %d", limit, got, want)
		}
	}
	for prompt, want := range map[int]int{-1: 0, 0: 0, 63: 0, 64: 1, 511: 1, 512: 2, 4096: 3, 1 << 30: 3} {
		if got := (&Shape{Prompt: prompt}).prompt(); got != want {
			t.Errorf("a prompt of %d is in bucket %d, want %d", prompt, got, want)
		}
	}
}

func TestOutputByShape(t *testing.T) {
	chat := Shape{API: apis.Chat, Limit: -1, Prompt: 100, Choices: 1}
	tools, long, two := chat, chat, chat
	tools.Tools = true
	long.Prompt, two.Choices = 9000, 2
	text := chat
	text.API = apis.Completions
	var l Learned
	if got := l.Output(&chat); got != firstOutput {
		t.Errorf("nothing is known: %d tokens, want %d", got, firstOutput)
	}
	for range 60 {
		l.learn(Usage{Completion: 400, Shape: chat})
		l.learn(Usage{Completion: 40, Shape: tools})
	}
	if got := l.Output(&chat); got < 395 || got > 405 {
		t.Errorf("chats have %d tokens, want 400", got)
	}
	if got := l.Output(&tools); got < 35 || got > 55 {
		t.Errorf("chats with tools have %d tokens, want 40", got)
	}
	if got := l.Output(&long); got < 150 || got > 300 {
		t.Errorf("a chat of a new shape has %d tokens, want the mean of chats", got)
	}
	if got, model := l.Output(&text), l.output.value(0); got != int(math.Ceil(model)) {
		t.Errorf("another API has %d tokens, want the model's %v", got, model)
	}
	l.learn(Usage{Completion: 1000, Shape: long})
	if got := l.Output(&long); got < 500 || got > 800 {
		t.Errorf("after one answer of 1000 tokens %d are expected, want half-way there", got)
	}
	for range 60 {
		l.learn(Usage{Completion: 800, Shape: two})
	}
	if got := l.Output(&chat); got < 395 || got > 405 {
		t.Errorf("one of two answers of 800 together has %d tokens, want 400", got)
	}
	chat.Limit = 16
	if got := l.Output(&chat); got != 16 {
		t.Errorf("with a limit of 16: %d tokens", got)
	}
}

func TestCutAnswersSayLittle(t *testing.T) {
	var l Learned
	whole := Shape{API: apis.Chat, Limit: -1, Choices: 1}
	cut := whole
	cut.Limit = 8
	for range 60 {
		l.learn(Usage{Completion: 300, Shape: whole})
	}
	for range 60 {
		l.learn(Usage{Completion: 8, Shape: cut})
	}
	other := Shape{API: apis.Chat, Limit: -1, Choices: 1, Prompt: 5000}
	if got := l.Output(&other); got < 290 {
		t.Errorf("after many that were cut %d tokens are expected, want 300", got)
	}
	if got := l.Output(&cut); got != 8 {
		t.Errorf("with the limit: %d, want 8", got)
	}
}

func TestRatioIsLearned(t *testing.T) {
	var l Learned
	r := rand.New(rand.NewPCG(3, 4))
	s := Shape{API: apis.Chat, Choices: 1}
	wrong := 0.0
	for i := range 400 {
		s.Guess = 300 + r.IntN(4000)
		truth := int(float64(s.Guess) * 1.4 * (0.9 + 0.2*r.Float64()))
		s.Prompt = l.Guessed(&s)
		if i >= 100 {
			wrong += math.Abs(float64(s.Prompt-truth)) / float64(truth) / 300
		}
		if i%20 == 19 {
			truth *= 50 // an outlier
		}
		l.learn(Usage{Prompt: truth, Completion: 1, Shape: s})
	}
	if wrong > 0.1 {
		t.Errorf("estimates are off by %.1f %% on average, want ≤ 10", 100*wrong)
	}
	s.Blind = true
	if got := l.Ratio(&s); got != 1 {
		t.Errorf("bodies that weren't read have the ratio %v, want 1", got)
	}
}

// TestRatioOfMeans learns from engines that say nothing of single answers.
func TestRatioOfMeans(t *testing.T) {
	var l Learned
	s := Shape{API: apis.Chat, Choices: 1}
	r := rand.New(rand.NewPCG(5, 6))
	sum := 0.0
	for i := range 600 {
		s.Guess = 500 + r.IntN(1000)
		l.Guessed(&s)
		sum += 0.7 * float64(s.Guess)
		if i%20 == 19 {
			l.learnMean(sum / 20)
			sum = 0
		}
	}
	if got := l.Ratio(&s); got < 0.65 || got > 0.78 {
		t.Errorf("the ratio is %v, want 0.7", got)
	}
}
