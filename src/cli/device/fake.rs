//! A device for tests: another session on the CPU, to the same bits, that can fail.

use crate::arch::{self, Load};
use crate::kernels::KvType;
use crate::model::{
    Batch, Device, DeviceError, DeviceOutput, DevicePass, DeviceSession, DeviceStatistic, FixedDepth, KvShape, Logits,
    Model, Session, SessionOptions,
};
use std::path::Path;
use std::sync::Arc;

/// How it is called.
pub(in crate::cli) const NAME: &str = "a fake";

#[derive(Debug)]
struct Fake {
    model: Arc<Model>,
    passes: Option<usize>,
}

struct FakeSession {
    session: Session,
    passes: Option<usize>,
}

/// A model that is on a device. Its sessions fail after so many passes, if that is said; with 0 there is no room for any.
pub(in crate::cli) fn model(path: &Path, passes: Option<usize>) -> Arc<Model> {
    let open = || arch::open(path, Load::Map).unwrap();
    let mut model = open();
    model.place_on(Arc::new(Fake { model: Arc::new(open()), passes }));
    Arc::new(model)
}

impl Device for Fake {
    fn name(&self) -> &str {
        NAME
    }

    fn most_kv(&self, _: KvType, _: usize) -> u64 {
        u64::MAX
    }

    fn session(&self, _: &Model, shape: &KvShape) -> Result<Box<dyn DeviceSession>, String> {
        if self.passes == Some(0) {
            return Err("there is no room".into());
        }
        let options = SessionOptions {
            threads: std::num::NonZeroUsize::new(1),
            context: Some(shape.context),
            kv_type: shape.ty,
            steps: Some(shape.slots),
            ..SessionOptions::default()
        };
        let session = Session::new(Arc::clone(&self.model), &options).map_err(|e| e.to_string())?;
        Ok(Box::new(FakeSession { session, passes: self.passes }))
    }
}

impl DeviceSession for FakeSession {
    fn pass(&mut self, pass: &DevicePass<'_>, out: &mut DeviceOutput) -> Result<(), DeviceError> {
        assert_eq!(pass.rule.statistic, DeviceStatistic::Nothing, "it knows fixed depths only");
        if self.passes == Some(0) {
            return Err(DeviceError::Failed("it is lost".into()));
        }
        self.passes = self.passes.map(|n| n - 1);
        let tokens: Vec<u32> = pass.rows.iter().map(|row| row.token).collect();
        self.session.truncate(0, pass.rows[0].position);
        self.session.set_initial(pass.initial.clone());
        let batch = Batch { logits: Logits::All, ..Batch::next(&tokens) };
        let output = self.session.run(batch, &mut FixedDepth(pass.max_steps[0])).map_err(DeviceError::Model)?;
        out.steps = output.steps.iter().map(|&n| n as u32).collect();
        let vocab = pass.model.config().vocab;
        out.logits = pass.wanted.iter().flat_map(|&i| output.logits[i * vocab..][..vocab].to_vec()).collect();
        Ok(())
    }
}
