//! What must not change a result: chunking, threads, company, history. Everything here is compared bit for bit.

mod common;

use common::{Golden, HUGINN, RULE, Run, Setup, bits, model, run};
use rdt::exit::{ExitRule, RulePolicy};
use rdt::generate::{Engine, SamplerConfig};
use rdt::gguf::TensorType;
use rdt::kernels::KvType;
use rdt::model::{Batch, Error, FixedDepth, InitialState, Logits, Repack, Repacked};
use rdt::quant::Recipe;
use std::collections::HashSet;

/// The same setup in another chunking and on other threads.
fn cut(setup: &Setup, chunk: usize, threads: usize) -> Setup {
    Setup { chunk, threads, ..setup.clone() }
}

/// Every weight format and KV type (16-bit weights with one of them): chunks of 1, 3 and everything at 1, 2 and 7 threads, rows leaving at different steps.
#[test]
fn chunks_and_threads_do_not_show() {
    let golden = Golden::read(HUGINN);
    let every_kv = [KvType::F32, KvType::F16, KvType::Q8_0];
    for (recipe, kv_types) in [
        (Recipe::F32, &every_kv[..]),
        (Recipe::F16, &[KvType::F16]),
        (Recipe::BF16, &[KvType::F16]),
        (Recipe::Q8_0, &every_kv),
        (Recipe::Q4_0, &every_kv),
    ] {
        let model = model(HUGINN, recipe);
        for &kv_type in kv_types {
            let setup = Setup { kv_type, ..Setup::rule(RULE, 16, &golden.initial) };
            let alone = cut(&setup, 1, 1).run(&model, &golden.tokens);
            let depths: HashSet<_> = alone.steps.iter().collect();
            assert!(depths.len() >= 3, "{recipe}, KV {kv_type}: exits do not vary: {:?}", alone.steps);
            for chunk in [1, 3, golden.tokens.len()] {
                for threads in [1, 2, 7] {
                    let found = cut(&setup, chunk, threads).run(&model, &golden.tokens);
                    found.assert_same(&alone, &format!("{recipe}, KV {kv_type}, {threads} threads, chunks of {chunk}"));
                }
            }
        }
    }
}

/// The sizes at which the pass changes its ways: rows that workers prepare alone (4), tiles of eight rows, and one off.
#[test]
fn chunk_sizes_around_tiles_do_not_show() {
    let golden = Golden::read(HUGINN);
    for recipe in [Recipe::F32, Recipe::Q8_0, Recipe::Q4_0] {
        let model = model(HUGINN, recipe);
        let setup = Setup { kv_type: KvType::F16, ..Setup::rule(RULE, 16, &golden.initial) };
        let alone = cut(&setup, 1, 1).run(&model, &golden.tokens);
        for chunk in [2, 4, 5, 7, 8, 9, 13, 16, 17, 19, 1000] {
            cut(&setup, chunk, 3)
                .run(&model, &golden.tokens)
                .assert_same(&alone, &format!("{recipe}, chunks of {chunk}"));
        }
    }
}

/// Weights as they are in the file, interleaved in memory, and in a cache file that is written and then found: in every block
/// format, for one row, a few and many, on one thread and more than there are cores.
#[test]
fn interleaved_weights_do_not_show() {
    let types = [
        TensorType::Q8_0,
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q5_0,
        TensorType::Q5_1,
        TensorType::IQ4_NL,
        TensorType::Q4_K,
        TensorType::Q5_K,
        TensorType::Q6_K,
        TensorType::IQ4_XS,
    ];
    let caches = tempfile::tempdir().unwrap();
    let shapes = common::ALL[1..].iter().map(|folder| (*folder, Recipe::Q4_0));
    let cases = types.into_iter().map(|ty| (HUGINN, Recipe::Pure(ty))).chain(shapes);
    let mut interleaved = 0;
    for (i, (folder, recipe)) in cases.enumerate() {
        let cache = Repack::Cache(caches.path().join(format!("made {i}")).join("when needed"));
        let golden = Golden::read(folder);
        let stored = model(folder, recipe);
        assert_eq!(stored.panel_bytes(), 0);
        let setup = Setup { kv_type: KvType::F16, ..Setup::rule("step-norm:0.9,max=8", 8, &golden.initial) };
        let alone = cut(&setup, 1, 1).run(&stored, &golden.tokens);

        let (memory, done) = common::repacked(folder, recipe, &Repack::Auto);
        // Rows of some shapes are no whole blocks.
        let bytes = match done {
            Repacked::InMemory { bytes, .. } => bytes,
            Repacked::No { reason: Some(_) } if folder != HUGINN => continue,
            done => panic!("{folder}, {recipe}: {done:?}"),
        };
        interleaved += 1;
        assert!(bytes >= memory.panel_bytes() && memory.panel_bytes() > 0, "{bytes}");
        for (chunk, threads) in [(1, 1), (1, 7), (3, 2), (8, 1), (golden.tokens.len(), 1), (golden.tokens.len(), 7)] {
            let what = format!("{folder}, {recipe}, {threads} threads, chunks of {chunk}");
            cut(&setup, chunk, threads).run(&memory, &golden.tokens).assert_same(&alone, &what);
        }

        let (written, done) = common::repacked(folder, recipe, &cache);
        assert!(matches!(done, Repacked::InFile { time: Some(_), .. }), "{folder}, {recipe}: {done:?}");
        let (found, done) = common::repacked(folder, recipe, &cache);
        let Repacked::InFile { path, time: None, .. } = done else { panic!("{folder}, {recipe}: {done:?}") };
        for model in [&written, &found] {
            cut(&setup, 3, 2).run(model, &golden.tokens).assert_same(&alone, "a cache file");
        }

        // A file that was cut short, or is another's, is made again.
        drop((written, found));
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..10], &[], &vec![0; whole.len()][..]] {
            std::fs::write(&path, damaged).unwrap();
            let (again, done) = common::repacked(folder, recipe, &cache);
            assert!(matches!(done, Repacked::InFile { time: Some(_), .. }), "{done:?}");
            assert_eq!(again.panel_bytes(), memory.panel_bytes());
            drop(again);
            assert!(std::fs::read(&path).unwrap() == whole);
        }
    }
    assert!(interleaved > 10, "{interleaved}: no other shape was");
    let (f32s, done) = common::repacked(HUGINN, Recipe::F32, &Repack::Auto);
    assert!(matches!(done, Repacked::No { reason: Some(_) }) && f32s.panel_bytes() == 0);
    let (off, done) = common::repacked(HUGINN, Recipe::Q4_0, &Repack::Off);
    assert!(done == Repacked::No { reason: None } && off.panel_bytes() == 0);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut model = rdt::arch::from_bytes(rdt::files::Bytes::from(common::gguf(HUGINN, Recipe::Q4_0))).unwrap();
    let error = model.repack(&Repack::Cache(file.path().to_owned())).unwrap_err();
    assert!(error.to_string().contains("--repack off"), "{error}");
}

/// Every shape of model, with head sizes that no vector divides.
#[test]
fn chunks_and_threads_do_not_show_in_other_shapes() {
    for folder in &common::ALL[1..] {
        let golden = Golden::read(folder);
        for recipe in [Recipe::F32, Recipe::Q4_0] {
            let model = model(folder, recipe);
            let setup = Setup { kv_type: KvType::F16, ..Setup::rule("step-norm:0.9,max=8", 8, &golden.initial) };
            let alone = cut(&setup, 1, 1).run(&model, &golden.tokens);
            for (chunk, threads) in [(1, 7), (3, 2), (8, 1), (8, 7)] {
                let what = format!("{folder}, {recipe}, {threads} threads, chunks of {chunk}");
                cut(&setup, chunk, threads).run(&model, &golden.tokens).assert_same(&alone, &what);
            }
        }
    }
}

/// Texts longer than a block of keys (256).
#[test]
fn chunks_do_not_show_beyond_a_block_of_keys() {
    let model = model("huginn-shapes/untied", Recipe::F32);
    let tokens: Vec<u32> = (0..530).map(|i| (i * i * 7 + i) % 128).collect();
    for kv_type in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let initial = InitialState::Noise { seed: 7 };
        let setup = Setup { kv_type, context: 530, ..Setup::rule("acceleration:1.3,hits=1,max=5", 5, &initial) };
        let alone = cut(&setup, 1, 1).run(&model, &tokens);
        assert!(alone.steps.iter().collect::<HashSet<_>>().len() > 1, "{:?}", alone.steps);
        for (chunk, threads) in [(64, 2), (100, 3), (530, 1), (530, 2)] {
            cut(&setup, chunk, threads)
                .run(&model, &tokens)
                .assert_same(&alone, &format!("KV {kv_type}, chunks of {chunk}"));
        }
    }
}

/// A prompt in one call, in several, and token by token through the decoding engine.
#[test]
fn decoding_is_the_prompt_continued() {
    let golden = Golden::read(HUGINN);
    for recipe in [Recipe::F32, Recipe::Q4_0] {
        let model = model(HUGINN, recipe);
        let setup = Setup { kv_type: KvType::F16, chunk: 8, threads: 2, ..Setup::rule(RULE, 16, &golden.initial) };
        let engine =
            || Engine::new(setup.session(&model), setup.rule, Some(16), SamplerConfig::greedy(), usize::MAX).unwrap();

        let mut decoding = engine();
        let (prompt, generated) = (&golden.tokens[..7], 12);
        let first = decoding.prompt(prompt).unwrap();
        assert_eq!((first.run, first.reused), (7, 0));
        let (mut text, mut logits, mut steps) = (prompt.to_vec(), Vec::new(), Vec::new());
        for _ in 0..generated {
            let step = decoding.next_token().unwrap().unwrap();
            logits.extend_from_slice(decoding.logits());
            steps.push(step.steps);
            text.push(step.token);
        }
        // The last token was drawn but not run.
        assert_eq!(decoding.held(), &text[..text.len() - 1]);

        let whole = setup.run(&model, &text);
        let vocab = model.config().vocab;
        let behind = whole.behind(prompt.len() - 1);
        assert_eq!(behind.steps[..generated], steps);
        assert!(bits(&behind.logits[..generated * vocab]) == bits(&logits));
        for (t, row) in behind.logits.chunks(vocab).take(generated).enumerate() {
            let best = (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            assert_eq!(best as u32, text[prompt.len() + t], "greedy decoding takes the largest logit");
        }

        // Another text that begins the same runs only what differs, and is as if it had always been there.
        let mut other = text.clone();
        other[10] = (other[10] + 1) % vocab as u32;
        let stats = decoding.prompt(&other).unwrap();
        assert_eq!((stats.run, stats.reused), (other.len() - 10, 10));
        let mut fresh = engine();
        fresh.prompt(&other).unwrap();
        assert!(bits(decoding.logits()) == bits(fresh.logits()));
        assert_eq!(stats.steps, setup.run(&model, &other).steps[10..].iter().map(|&n| n as u64).sum::<u64>());

        // The same text again runs its last token, for its logits.
        let stats = fresh.prompt(&other).unwrap();
        assert_eq!((stats.run, stats.reused), (1, other.len() - 1));
        assert!(bits(decoding.logits()) == bits(fresh.logits()));
    }
}

/// Threads that are held back and let go again while a text is generated do not show in it.
#[test]
fn fewer_threads_on_the_way_do_not_show() {
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::Q4_0);
    let setup = Setup { kv_type: KvType::F16, chunk: 8, threads: 5, ..Setup::rule(RULE, 16, &golden.initial) };
    let mut texts = Vec::new();
    for bounds in [&[5][..], &[1, 3, 2, 5, 4, 0, 99]] {
        let session = setup.session(&model);
        let mut engine = Engine::new(session, setup.rule, Some(16), SamplerConfig::greedy(), usize::MAX).unwrap();
        engine.prompt(&golden.tokens[..7]).unwrap();
        let mut text = Vec::new();
        for i in 0..14 {
            let bound = bounds[i % bounds.len()];
            assert_eq!(engine.set_threads(bound), bound.clamp(1, 5));
            assert_eq!((engine.session().most_threads(), engine.session().threads()), (bound.clamp(1, 5), 5));
            text.push((engine.next_token().unwrap().unwrap(), bits(engine.logits())));
        }
        texts.push(text);
    }
    assert!(texts[0] == texts[1]);
}

/// A context that fills up while decoding ends the text without an error; the tokens up to there are as ever.
#[test]
fn a_full_context_ends_the_text() {
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::Q8_0);
    let setup = |context| Setup { context, ..Setup::rule(RULE, 16, &golden.initial) };
    let decode = |context| {
        let mut engine =
            Engine::new(setup(context).session(&model), setup(0).rule, Some(16), SamplerConfig::greedy(), usize::MAX)
                .unwrap();
        engine.prompt(&golden.tokens[..5]).unwrap();
        let mut tokens = Vec::new();
        while let Some(step) = engine.next_token().unwrap() {
            tokens.push(step.token);
            if tokens.len() == 20 {
                break;
            }
        }
        tokens
    };
    let (short, long) = (decode(9), decode(64));
    // Five positions hold the prompt, four the tokens that were run; one more is drawn.
    assert_eq!((short.len(), long.len()), (5, 20));
    assert_eq!(short, long[..5]);

    // A prompt that exactly fits is no error, one token more is, before anything runs.
    let mut session = setup(20).session(&model);
    let mut recorder = setup(20).recorder(model.config());
    run(&mut session, &mut recorder, 0, &golden.tokens);
    let batch = Batch { sequence: 0, tokens: &[1], logits: Logits::Last, readout_exits: false, both_ways: false };
    let error = session.run(batch, &mut recorder).unwrap_err();
    assert!(matches!(error, Error::ContextFull { used: 20, context: 20, asked: 1 }), "{error}");
    assert_eq!(session.len(0), 20);
}

/// Two sequences in one session, run in turns, are what each is alone.
#[test]
fn sequences_do_not_disturb_each_other() {
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::Q4_0);
    let other: Vec<u32> = golden.tokens.iter().rev().map(|t| (t * 3 + 1) % 1024).collect();
    let setup = Setup {
        sequences: 3,
        chunk: 4,
        threads: 2,
        kv_type: KvType::Q8_0,
        context: 20,
        ..Setup::rule(RULE, 16, &golden.initial)
    };
    let alone = [setup.run(&model, &golden.tokens), setup.run(&model, &other)];
    assert_ne!(alone[0].steps, alone[1].steps);

    let mut session = setup.session(&model);
    let mut recorder = setup.recorder(model.config());
    let mut runs: [Option<Run>; 2] = [None, None];
    for at in [0..1, 1..6, 6..13, 13..20] {
        for (i, tokens) in [&golden.tokens, &other].into_iter().enumerate() {
            // Sequences 2 and 0: the outermost planes.
            let next = run(&mut session, &mut recorder, 2 - 2 * i, &tokens[at.clone()]);
            runs[i] = Some(match runs[i].take() {
                None => next,
                Some(before) => before.then(next),
            });
        }
    }
    assert_eq!([session.len(0), session.len(1), session.len(2)], [20, 0, 20]);
    for (i, run) in runs.into_iter().enumerate() {
        run.unwrap().assert_same(&alone[i], &format!("sequence {i}"));
    }
}

/// Cutting a sequence back and running on is as if the rest had never been, whatever depths it had.
#[test]
fn truncating_leaves_no_trace() {
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::Q8_0);
    let setup = Setup { chunk: 6, threads: 2, ..Setup::rule(RULE, 16, &golden.initial) };
    let expected = setup.run(&model, &golden.tokens);
    let mut session = setup.session(&model);
    let mut recorder = setup.recorder(model.config());
    for keep in [0, 1, 5, 6, 7, 19] {
        // Other tokens, at full depth, so that every slot of their positions is written.
        let other: Vec<u32> = golden.tokens.iter().map(|t| (t + 11) % 1024).collect();
        session.truncate(0, 0);
        if keep > 0 {
            run(&mut session, &mut recorder, 0, &golden.tokens[..keep]);
        }
        let batch = Batch { sequence: 0, tokens: &other, logits: Logits::None, readout_exits: false, both_ways: false };
        session.run(batch, &mut FixedDepth(16)).unwrap();
        session.truncate(0, 1000);
        assert_eq!(session.len(0), keep + 20);
        session.truncate(0, keep);
        assert_eq!(session.len(0), keep);
        run(&mut session, &mut recorder, 0, &golden.tokens[keep..])
            .assert_same(&expected.behind(keep), &format!("{keep} tokens kept"));
    }
}

/// Reading out a stored latent gives the logits of a run that ended there, for each depth, in any chunking, and putting the
/// last ones back leaves the session as it was.
#[test]
fn stored_latents_read_out_as_they_were() {
    let golden = Golden::read(HUGINN);
    for recipe in [Recipe::F32, Recipe::Q4_0] {
        let model = model(HUGINN, recipe);
        for (rule, chunk, threads) in [("fixed", 64, 1), (RULE, 3, 2), (RULE, 20, 7)] {
            let setup = Setup { chunk, threads, ..Setup::rule(rule, 9, &golden.initial) };
            let mut session = setup.session(&model);
            let mut recorder = setup.recorder(model.config());
            let whole = run(&mut session, &mut recorder, 0, &golden.tokens);
            for k in (1..=9).rev() {
                let ended = Setup { steps: k, ..setup.clone() }.run(&model, &golden.tokens);
                let found = session.read_out(0, 0, &whole.latents(k), Logits::All).unwrap();
                assert!(bits(found) == bits(&ended.logits), "{recipe}, {rule}, depth {k}");
            }
            // Each position on its own, from the first on, restores the session.
            let last = whole.latents(9);
            for (t, row) in last.chunks(128).enumerate() {
                let found = bits(session.read_out(0, t, row, Logits::All).unwrap());
                assert!(found == bits(&whole.logits[t * 1024..(t + 1) * 1024]), "position {t}");
            }
            let next = run(&mut session, &mut recorder, 0, &[5, 6]);
            let mut longer = golden.tokens.clone();
            longer.extend([5, 6]);
            next.assert_same(&setup.run(&model, &longer).behind(20), "continued after reading out");
        }
        let mut session = Setup::fixed(2, &golden.initial).session(&model);
        assert!(matches!(session.read_out(0, 0, &[0.0; 128], Logits::All), Err(Error::Option(_))), "nothing was run");
        run(&mut session, &mut Setup::fixed(2, &golden.initial).recorder(model.config()), 0, &[1, 2]);
        for (first, values) in [(0, 0), (0, 127), (0, 3 * 128), (2, 128), (usize::MAX, 128)] {
            let result = session.read_out(0, first, &vec![0.0; values], Logits::All).map(<[f32]>::len);
            assert!(matches!(result, Err(Error::Option(_))), "{first}, {values}: {result:?}");
        }
    }
}

/// As many slots as steps taken are all slots; fewer are an approximation that still does not see threads.
#[test]
fn slots_beyond_the_steps_taken_do_not_show() {
    let golden = Golden::read(HUGINN);
    for recipe in [Recipe::F32, Recipe::Q8_0] {
        let model = model(HUGINN, recipe);
        let setup = Setup { chunk: 5, ..Setup::rule("acceleration:1.6,hits=1,max=16", 16, &golden.initial) };
        let all = setup.run(&model, &golden.tokens);
        let deepest = *all.steps.iter().max().unwrap();
        assert!((4..16).contains(&deepest));
        let with = |slots, chunk, threads| {
            let setup = Setup { kv_slots: Some(slots), chunk, threads, ..setup.clone() };
            let session = setup.session(&model);
            assert_eq!(session.kv_shape().slots, slots.min(16));
            setup.run(&model, &golden.tokens)
        };
        for slots in [deepest, deepest + 1, 16, 17, 1000] {
            with(slots, 5, 2).assert_same(&all, &format!("{slots} slots"));
        }
        for slots in [1, 2, 3, deepest - 1] {
            let few = with(slots, 5, 1);
            // The first token sees only itself, at its own step.
            assert_eq!(few.steps[0], all.steps[0]);
            assert!(bits(&few.logits) != bits(&all.logits), "{slots} slots change nothing: the test proves nothing");
            for threads in [2, 7] {
                with(slots, 5, threads).assert_same(&few, &format!("{slots} slots, {threads} threads"));
            }
        }
    }
}

/// Calls without logits, with the last row's and with all rows' give the same numbers.
#[test]
fn wanting_logits_changes_nothing() {
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::Q4_0);
    let vocab = model.config().vocab;
    for chunk in [1, 7, 64] {
        let setup = Setup { chunk, threads: 2, ..Setup::rule(RULE, 16, &golden.initial) };
        let all = setup.run(&model, &golden.tokens);
        for (logits, expected) in [(Logits::None, 0), (Logits::Last, vocab), (Logits::All, 20 * vocab)] {
            let mut session = setup.session(&model);
            let batch = Batch { sequence: 0, tokens: &golden.tokens, logits, readout_exits: false, both_ways: false };
            let output = session.run(batch, &mut setup.recorder(model.config())).unwrap();
            assert_eq!(output.steps, all.steps);
            assert!(bits(output.logits) == bits(&all.logits[20 * vocab - expected..]));
            assert!(bits(output.last()) == bits(&output.logits[output.logits.len().saturating_sub(vocab)..]));
            // The coda's keys and values were written although nobody wanted the logits.
            let batch = Batch { tokens: &[3], logits: Logits::Last, ..batch };
            let next = session.run(batch, &mut setup.recorder(model.config())).unwrap().logits.to_vec();
            let mut longer = golden.tokens.clone();
            longer.push(3);
            assert!(bits(&next) == bits(&setup.run(&model, &longer).logits[20 * vocab..]));
        }
    }
}

/// Read-out rules: the same whether a token comes alone or in a call with others, and whether its logits are wanted.
#[test]
fn readout_rules_run_token_by_token() {
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::Q8_0);
    let rule: ExitRule = "kl:0.12,hits=2,min=2,max=12".parse().unwrap();
    let vocab = model.config().vocab;
    let result = |chunk: usize, threads, calls: &[usize], logits| {
        let setup = Setup { rule, chunk, threads, ..Setup::fixed(12, &golden.initial) };
        let mut session = setup.session(&model);
        let mut policy = RulePolicy::new(rule, Some(12), model.config(), chunk).unwrap();
        let (mut steps, mut found, mut at) = (Vec::new(), Vec::new(), 0);
        for &n in calls {
            let batch = Batch {
                sequence: 0,
                tokens: &golden.tokens[at..at + n],
                logits,
                readout_exits: true,
                both_ways: false,
            };
            let output = session.run(batch, &mut policy).unwrap();
            steps.extend_from_slice(output.steps);
            found.extend_from_slice(output.logits);
            at += n;
        }
        (steps, bits(&found))
    };
    let (steps, logits) = result(64, 1, &[20], Logits::All);
    assert!(steps.iter().collect::<HashSet<_>>().len() >= 3, "{steps:?}");
    assert_eq!(logits.len(), 20 * vocab);
    for (chunk, threads, calls) in [(1, 2, &[20][..]), (8, 7, &[1; 20][..]), (64, 2, &[3, 1, 9, 7][..])] {
        let other = result(chunk, threads, calls, Logits::All);
        assert!(other == (steps.clone(), logits.clone()), "chunks of {chunk}, calls of {calls:?}");
    }
    let (none, nothing) = result(64, 2, &[19, 1], Logits::None);
    assert!(none == steps && nothing.is_empty());
    // Depth and coda keys are the same when only the last logits are wanted.
    let (last, one) = result(64, 2, &[20], Logits::Last);
    assert!(last == steps && one == logits[19 * vocab..]);
    // Inside a batch a read-out rule does not act.
    let setup = Setup { rule, ..Setup::fixed(12, &golden.initial) };
    assert_eq!(setup.run(&model, &golden.tokens).steps, [12; 20]);
}
